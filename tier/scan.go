package tier

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/internal/vfs"
)

// scan compares the files with the index: files that the index does not know
// go to held/, parts whose file is gone are dropped. After a clean end the
// index knows all files, so that they are counted and not looked at; one that
// somebody removed since is found missing when it is opened.
func (r *recovery) scan() error {
	if err := r.scanHeld(); err != nil {
		return err
	}
	if r.clean {
		return r.count()
	}
	if err := r.scanData(); err != nil {
		return err
	}
	for _, p := range r.parts {
		if !p.has(partSeen) {
			if err := r.lose(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// count charges the files and the directories that they are in.
func (r *recovery) count() error {
	d := r.d
	for _, p := range r.parts {
		d.leaves.grow(leafOf(p.id), 1)
	}
	d.ledger.add(0, int64(len(r.parts)))
	for number := range leafCount {
		err := r.chargeLeaf(number)
		if err != nil && (!errors.Is(err, fs.ErrNotExist) || d.leaves.has(number)) {
			return err
		}
	}
	return nil
}

// scanners bounds how many directories are listed at the same time. A disk
// that has to move its head gets one.
const scanners = 8

// scanData lists all fan-out directories.
func (r *recovery) scanData() error {
	data := filepath.Join(r.d.root, dataDir)
	tops, err := r.d.fs.ReadDir(data)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(min(scanners, runtime.GOMAXPROCS(0)))
	if r.d.cfg.Medium == HDD {
		g.SetLimit(1)
	}
	for _, top := range tops {
		g.Go(func() error {
			leaves, err := r.d.fs.ReadDir(filepath.Join(data, top.Name()))
			if err != nil {
				return err
			}
			for _, leaf := range leaves {
				if err := r.scanLeaf(top.Name(), leaf.Name()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *recovery) scanHeld() error {
	held := filepath.Join(r.d.root, heldDir)
	entries, err := r.d.fs.ReadDir(held)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(held, e.Name())
		fi, err := r.d.fs.Stat(name)
		if err != nil {
			return err
		}
		h := heldFile{name, vfs.Allocated(fi)}
		r.d.ledger.add(h.bytes, 1)
		r.d.ledger.hold(h.bytes)
		r.d.held = append(r.d.held, h)
		if seq, ok := heldNumber(e.Name()); ok && seq > r.d.heldNames.Load() {
			r.d.heldNames.Store(seq)
		}
	}
	r.d.sweepHeld()
	return nil
}

// heldNumber reads the number that discard put at the end of a name.
func heldNumber(name string) (n uint64, ok bool) {
	i := strings.LastIndex(name, "-x")
	if i < 0 {
		return 0, false
	}
	_, err := fmt.Sscanf(name[i+2:], "%x", &n)
	return n, err == nil
}

// scanLeaf looks at the files of one fan-out directory and charges it.
func (r *recovery) scanLeaf(top, leaf string) error {
	d := r.d
	rel := filepath.Join(top, leaf)
	dir := filepath.Join(d.root, dataDir, rel)
	entries, err := d.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	number := leafNumber(rel)
	n := int32(0)
	for _, e := range entries {
		name := dir + string(filepath.Separator) + e.Name()
		id, err := block.ParseFileID(e.Name())
		if p := r.find(id); err == nil && p != nil && leafOf(id) == number && id.String() == e.Name() {
			p.flags |= partSeen
			n++
			if err := r.compare(p, name); err != nil {
				return err
			}
			continue
		}
		if err := r.hold(name); err != nil {
			return err
		}
	}
	d.ledger.add(0, int64(n))
	if number < 0 {
		return nil
	}
	d.leaves.grow(number, n)
	return r.chargeLeaf(number)
}

// chargeLeaf charges a fan-out directory whose files are counted.
func (r *recovery) chargeLeaf(number int) error {
	d := r.d
	fi, err := d.fs.Stat(filepath.Join(d.root, dataDir, leafName(number)))
	if err != nil {
		return err
	}
	bytes := max(d.leaves.need(number), roundUp(vfs.Allocated(fi), d.block)+d.block)
	d.leaves.charged(number, bytes)
	d.ledger.add(bytes, 2)
	return nil
}

// compare notes a part whose file takes more than its recorded pages do, or is
// not of the right length. While the machine runs on that comes from a page
// that was written and not recorded, which a part with all its pages has none
// of. It comes with the listing of the file's directory, since in another order
// the files' inodes would be read from all over the disk.
func (r *recovery) compare(p *part, name string) error {
	if !r.rebooted && p.pages() == p.geometry().Pages() {
		return nil
	}
	fi, err := r.d.fs.Stat(name)
	if err != nil {
		return err
	}
	if vfs.Allocated(fi) > r.d.partCharge(p) || fi.Size() != p.length {
		r.mu.Lock()
		r.odd[p] = true
		r.mu.Unlock()
	}
	return nil
}

// leafNumber is the reverse of leafName; -1 for another name.
func leafNumber(rel string) int {
	n, err := strconv.ParseUint(strings.ReplaceAll(rel, string(filepath.Separator), ""), 16, 12)
	if err != nil || leafName(int(n)) != rel {
		return -1
	}
	return int(n)
}

// hold moves a file that is not ours to keep out of the way.
func (r *recovery) hold(name string) error {
	r.mu.Lock()
	r.held++
	r.mu.Unlock()
	return r.d.discard(name)
}
