package cachemaster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"millrace/block"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

// errStopping is why a master that stops refuses work.
var errStopping = errors.New("this master is stopping")

// maxStats bounds the looks at under-stores that are under way at a time.
const maxStats = 256

// namespace answers what is where: it resolves paths through the mount table,
// asks the under-stores, and keeps their answers for as long as the mounts'
// freshness allows. It is safe for concurrent use.
type namespace struct {
	cfg    Config
	now    func() time.Time
	state  func() *fsm.State
	stores *stores
	cache  *metaCache

	detached detached
	stats    flights[statKey, statAnswer]
	looking  *semaphore.Weighted
	siblings *siblings

	listMu sync.Mutex
	lists  map[statKey]*listing

	hits, misses atomic.Int64 // of the cache
}

// statKey names an answer that callers may share: a path of an under-store
// mount as that was since its last change.
type statKey struct {
	mount, changed uint64
	path           string
}

// statAnswer is an under-store's answer about one path.
type statAnswer struct {
	info    ufs.Info
	expires time.Time // the zero time never comes
	err     error
}

func newNamespace(cfg Config, now func() time.Time, state func() *fsm.State, st *stores) *namespace {
	n := &namespace{
		cfg: cfg, now: now, state: state, stores: st,
		cache:   newMetaCache(int64(cfg.MetadataCacheBytes), now),
		looking: semaphore.NewWeighted(maxStats), siblings: newSiblings(),
		lists: make(map[statKey]*listing),
	}
	n.stats.detached = &n.detached
	return n
}

// close ends what the namespace has under way.
func (n *namespace) close() { n.detached.close() }

// mountsChanged drops what belongs to mounts that are gone.
func (n *namespace) mountsChanged(st *fsm.State) {
	n.stores.retain(st)
	n.cache.retain(func(id uint64) bool {
		_, ok := st.MountByID(id)
		return ok
	})
}

// file is one file or directory of the namespace.
type file struct {
	path  string    // in the namespace
	mount fsm.Mount // its zero value for a directory that is of no under-store
	info  ufs.Info
	// valid says for how long the answer may be used.
	valid time.Duration
}

// resolve returns the mount that a path belongs to and the path below it.
func resolve(st *fsm.State, p string) (m fsm.Mount, rel string, ok bool) {
	for i := range st.Mounts {
		c := &st.Mounts[i]
		if fsm.Below(p, string(c.Path)) && (!ok || len(c.Path) > len(m.Path)) {
			m, ok = *c, true
		}
	}
	if !ok {
		return fsm.Mount{}, "", false
	}
	return m, relative(p, string(m.Path)), true
}

// relative returns p below dir, which it is, without a leading slash.
func relative(p, dir string) string {
	return strings.TrimPrefix(strings.TrimPrefix(p, strings.TrimSuffix(dir, "/")), "/")
}

// absolute returns the namespace path of rel, below the mount at dir.
func absolute(dir, rel string) string {
	switch {
	case rel == "":
		return dir
	case dir == "/":
		return "/" + rel
	default:
		return dir + "/" + rel
	}
}

// below returns p with a slash behind it: what all paths below it begin with.
func below(p string) string {
	if p == "/" {
		return p
	}
	return p + "/"
}

// holdsMounts reports whether p is a mount point or lies above one. Such a
// path is a directory, whatever an under-store has in its place.
func holdsMounts(st *fsm.State, p string) bool {
	for i := range st.Mounts {
		if fsm.Below(string(st.Mounts[i].Path), p) {
			return true
		}
	}
	return false
}

// freshness returns the moment at which an answer that was asked for now ends
// to be fresh, which for freshness "never" does not come, and whether it may
// be kept at all.
func (n *namespace) freshness(m fsm.Mount) (expires time.Time, keep bool) {
	switch m.Freshness {
	case fsm.FreshNever:
		return time.Time{}, true
	case fsm.FreshAlways:
		return n.now(), false
	case fsm.FreshTTL:
	}
	return n.now().Add(time.Duration(m.TTLMillis) * time.Millisecond), true
}

// absence returns the moment at which the answer that something is not there,
// asked for now, ends to be fresh; expires is when others do.
func (n *namespace) absence(expires time.Time) time.Time {
	bound := n.now().Add(n.cfg.MissingTTL.Std())
	if expires.IsZero() || bound.Before(expires) {
		return bound
	}
	return expires
}

// valid returns for how long an answer may be used from now on.
func (n *namespace) valid(expires time.Time) time.Duration {
	if expires.IsZero() {
		return n.cfg.NeverTTL.Std()
	}
	return max(expires.Sub(n.now()), 0)
}

// virtual describes a directory that the mount table alone makes.
func (n *namespace) virtual(st *fsm.State, p string) file {
	f := file{path: p, info: ufs.Info{Type: ufs.Dir}, valid: n.cfg.FreshnessTTL.Std()}
	if m, rel, ok := resolve(st, p); ok {
		f.mount, f.info.Path = m, rel
		expires, _ := n.freshness(m)
		f.valid = min(f.valid, n.valid(expires))
	}
	return f
}

// missingError is an under-store's answer that nothing is at a path. It is
// errs.NotFound.
type missingError struct {
	path  string
	valid time.Duration // for how long the answer may be used
}

func (e *missingError) Error() string { return e.Unwrap().Error() }

func (e *missingError) Unwrap() error { return errs.E(errs.NotFound, "stat", e.path, nil) }

// stat describes the path. look says to ask the under-store whatever is
// cached.
func (n *namespace) stat(ctx context.Context, p string, look bool) (file, error) {
	if err := checkPath(p); err != nil {
		return file{}, err
	}
	st := n.state()
	if p == "/" || holdsMounts(st, p) {
		return n.virtual(st, p), nil
	}
	m, rel, ok := resolve(st, p)
	if !ok {
		return file{}, errs.E(errs.NotFound, "stat", p, errors.New("no under-store is bound here"))
	}
	answer, ok := statAnswer{}, false
	if !look && m.Freshness != fsm.FreshAlways {
		answer, ok = n.cache.stat(m.ID, rel)
	}
	if ok {
		n.hits.Add(1)
	} else {
		n.misses.Add(1)
		var err error
		if answer, err = n.ask(ctx, st.Index, m, rel, look); err != nil {
			return file{}, errs.Wrap(err, "stat", p)
		}
	}
	if answer.err != nil {
		if errors.Is(answer.err, errs.NotFound) {
			return file{}, &missingError{path: p, valid: n.valid(answer.expires)}
		}
		return file{}, errs.Wrap(answer.err, "stat", p)
	}
	return file{path: p, mount: m, info: answer.info, valid: n.valid(answer.expires)}, nil
}

// ask asks the under-store about one path. Calls that overlap share the
// answer, unless it must be newer than each of them.
func (n *namespace) ask(ctx context.Context, index uint64, m fsm.Mount, rel string, look bool) (statAnswer, error) {
	if look || m.Freshness == fsm.FreshAlways {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.UFSTimeout.Std())
		defer cancel()
		return n.lookup(ctx, index, m, rel), nil
	}
	key := statKey{mount: m.ID, changed: m.Changed, path: rel}
	return n.stats.do(ctx, key, n.cfg.UFSTimeout.Std(), func(ctx context.Context) statAnswer {
		if answer, ok := n.fromSiblings(ctx, index, m, rel); ok {
			return answer
		}
		return n.lookup(ctx, index, m, rel)
	})
}

// lookup asks the under-store and keeps its answer. index is the applied
// index at the start.
func (n *namespace) lookup(ctx context.Context, index uint64, m fsm.Mount, rel string) statAnswer {
	if err := n.looking.Acquire(ctx, 1); err != nil {
		return statAnswer{err: errs.E(errs.Timeout, "", "", fmt.Errorf("too many looks at under-stores are under way: %w", err))}
	}
	defer n.looking.Release(1)
	expires, keep := n.freshness(m)
	absence := n.absence(expires)
	store, release, err := n.stores.use(ctx, m)
	if err != nil {
		return statAnswer{err: err}
	}
	defer release()
	info, err := store.Stat(ctx, rel)
	found := err == nil
	if !found {
		expires = absence
	}
	if keep && (found || errors.Is(err, errs.NotFound)) && n.unchanged(m, index) {
		n.cache.putStat(m.ID, rel, info, found, expires)
		n.cache.correct(m.ID, rel, info, found)
	}
	return statAnswer{info: info, expires: expires, err: err}
}

// unchanged reports whether what was learned of m since the applied index
// holds still.
func (n *namespace) unchanged(m fsm.Mount, index uint64) bool {
	now, ok := n.state().MountByID(m.ID)
	return ok && now.Changed <= index
}

// ticket issues the right to read a file. Its bounds are checked where it is
// encoded.
func (n *namespace) ticket(f *file) *block.Ticket {
	t := &block.Ticket{
		MountID: f.mount.ID, Path: f.info.Path, Tag: f.info.Tag, Length: f.info.Size,
		BlockSize: f.mount.BlockSize, Unsettled: f.info.Unsettled,
		Expiry: n.now().Add(n.cfg.TicketTTL.Std()).UTC().Truncate(time.Millisecond),
	}
	t.FileID = t.Derive()
	return t
}

// place is a path of an under-store.
type place struct {
	mount fsm.Mount
	path  string
}

// covering returns the places that hold what is at and below p: its own, and
// the under-store mounts below it.
func covering(st *fsm.State, p string) []place {
	var found []place
	if m, rel, ok := resolve(st, p); ok {
		found = append(found, place{m, rel})
	}
	for i := range st.Mounts {
		if m := st.Mounts[i]; string(m.Path) != p && fsm.Below(string(m.Path), p) {
			found = append(found, place{mount: m})
		}
	}
	return found
}

// child returns the component of p that is next below dir.
func child(p, dir string) string {
	name, _, _ := strings.Cut(relative(p, dir), "/")
	return name
}
