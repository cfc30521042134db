package tier

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
)

// pathIndex orders parts by (mount, path, serial), for operations on a
// subtree. It costs about 12 bytes per part.
type pathIndex struct {
	mu   sync.RWMutex
	tree *btree.BTreeG[*part]
}

func newPathIndex() *pathIndex {
	less := func(a, b *part) bool { return comparePaths(a, b) < 0 }
	return &pathIndex{tree: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true, Degree: 64})}
}

// add takes p in and returns the parts with other versions of the same path.
func (x *pathIndex) add(p *part) (superseded []*part) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tree.Set(p)
	from := &part{mountID: p.mountID, text: p.path()}
	x.tree.Ascend(from, func(q *part) bool {
		if q.mountID != p.mountID || q.path() != p.path() {
			return false
		}
		if q.id != p.id && q.state.Or(unitSuperseded)&unitSuperseded == 0 {
			superseded = append(superseded, q)
		}
		return true
	})
	return superseded
}

// adopt is add of a part that may be older than others of its path: of all of
// them the newest stays.
func (x *pathIndex) adopt(p *part) (superseded []*part) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tree.Set(p)
	from := &part{mountID: p.mountID, text: p.path()}
	var older *part
	x.tree.Ascend(from, func(q *part) bool {
		if q.mountID != p.mountID || q.path() != p.path() {
			return false
		}
		if older != nil && older.state.Or(unitSuperseded)&unitSuperseded == 0 {
			superseded = append(superseded, older)
		}
		older = q
		return true
	})
	return superseded
}

// isBelow reports whether p is path or below it; "" is the root.
func isBelow(p, path string) bool {
	rest, ok := strings.CutPrefix(p, path)
	return ok && (path == "" || rest == "" || rest[0] == '/')
}

func (x *pathIndex) remove(p *part) {
	x.mu.Lock()
	x.tree.Delete(p)
	x.mu.Unlock()
}

// replace puts q, another part of the same version, in p's place. It reports
// whether there is a newer version.
func (x *pathIndex) replace(p, q *part) (superseded bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tree.Delete(p)
	x.tree.Set(q)
	superseded = p.state.Load()&unitSuperseded != 0
	if superseded {
		q.state.Or(unitSuperseded)
	}
	return superseded
}

// below returns the parts of a mount at path and below it; "" is the root.
func (x *pathIndex) below(mountID uint64, path string) []*part {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var found []*part
	from := &part{mountID: mountID, text: path}
	x.tree.Ascend(from, func(q *part) bool {
		if q.mountID != mountID || !strings.HasPrefix(q.path(), path) {
			return false
		}
		if isBelow(q.path(), path) {
			found = append(found, q)
		}
		return true
	})
	return found
}

// behind returns up to n parts that come behind p in order; nil is before
// the first. p may have left the index.
func (x *pathIndex) behind(p *part, n int) []*part {
	x.mu.RLock()
	defer x.mu.RUnlock()
	found := make([]*part, 0, n)
	take := func(q *part) bool {
		if q != p {
			found = append(found, q)
		}
		return len(found) < n
	}
	if p == nil {
		x.tree.Scan(take)
	} else {
		x.tree.Ascend(p, take)
	}
	return found
}

// random returns one of the parts; nil if there is none.
func (x *pathIndex) random() *part {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.tree.Len() == 0 {
		return nil
	}
	p, _ := x.tree.GetAt(rand.IntN(x.tree.Len()))
	return p
}

// load fills an empty index and returns the parts that have a newer version.
// It sorts parts.
func (x *pathIndex) load(parts []*part) (superseded []*part) {
	sortPaths(parts)
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, p := range parts {
		x.tree.Load(p)
		if i > 0 && parts[i-1].mountID == p.mountID && parts[i-1].path() == p.path() {
			superseded = append(superseded, parts[i-1]) // of a lower serial
		}
	}
	return superseded
}

// sortPaths sorts by comparePaths. A comparison of two parts costs several
// misses of the processor's caches, so eight bytes of each path at a time are
// laid beside one another and compared as numbers.
func sortPaths(parts []*part) {
	slices.SortFunc(parts, func(a, b *part) int { return cmp.Compare(a.mountID, b.mountID) })
	all := make([]keyedPart, len(parts))
	for i, p := range parts {
		all[i].part = p
	}
	for first := 0; first < len(all); {
		end := first + 1
		for end < len(all) && all[end].part.mountID == all[first].part.mountID {
			end++
		}
		sortKeyed(all[first:end], 0)
		first = end
	}
	for i, k := range all {
		parts[i] = k.part
	}
}

// keyedPart is a part and eight bytes of its path, big-endian, with zeros
// behind its end.
type keyedPart struct {
	key  uint64
	part *part
}

// sortKeyed sorts parts of one mount whose paths are equal up to depth.
func sortKeyed(all []keyedPart, depth int) {
	for i := range all {
		var b [8]byte
		copy(b[:], all[i].part.path()[depth:])
		all[i].key = binary.BigEndian.Uint64(b[:])
	}
	slices.SortFunc(all, func(a, b keyedPart) int { return cmp.Compare(a.key, b.key) })
	for first := 0; first < len(all); {
		end, ended := first, false
		for end < len(all) && all[end].key == all[first].key {
			ended = ended || len(all[end].part.path()) < depth+8
			end++
		}
		switch group := all[first:end]; {
		case len(group) == 1:
		case ended || len(group) < 8:
			slices.SortFunc(group, func(a, b keyedPart) int { return comparePaths(a.part, b.part) })
		default:
			sortKeyed(group, depth+8)
		}
		first = end
	}
}

func comparePaths(a, b *part) int {
	return cmp.Or(
		cmp.Compare(a.mountID, b.mountID),
		strings.Compare(a.path(), b.path()),
		cmp.Compare(a.serial, b.serial),
		bytes.Compare(a.id[:], b.id[:]),
	)
}
