package cachemaster

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

// children streams what is in the directory p: first the mount points and
// what leads to them, in byte order, then what the under-store has, in its
// order; a name that is both is the former.
func (n *namespace) children(ctx context.Context, p string) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		if err := checkPath(p); err != nil {
			yield(file{}, err)
			return
		}
		st := n.state()
		virtual := make(map[string]bool)
		for i := range st.Mounts {
			if mp := string(st.Mounts[i].Path); mp != p && fsm.Below(mp, p) {
				virtual[child(mp, p)] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(virtual)) {
			if !yield(n.virtual(st, absolute(p, name)), nil) {
				return
			}
		}
		m, rel, ok := resolve(st, p)
		if !ok {
			if p != "/" && len(virtual) == 0 {
				yield(file{}, errs.E(errs.NotFound, "list", p, errors.New("no under-store is bound here")))
			}
			return
		}
		for f, err := range n.listUFS(ctx, st.Index, m, rel) {
			if err != nil {
				if len(virtual) > 0 && (errors.Is(err, errs.NotFound) || errors.Is(err, errs.NotDir)) {
					return // a directory that the mount table alone makes
				}
				yield(file{}, errs.Wrap(err, "list", p))
				return
			}
			_, name := splitPath(f.info.Path)
			if virtual[name] {
				continue
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// listUFS streams a directory of an under-store, from the cache or from a
// listing that may be shared.
func (n *namespace) listUFS(ctx context.Context, index uint64, m fsm.Mount, rel string) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		emit := func(infos []ufs.Info, l *listing) bool {
			valid := n.valid(l.expires)
			for i := range infos {
				if !yield(file{path: absolute(string(m.Path), infos[i].Path), mount: m, info: infos[i], valid: valid}, nil) {
					return false
				}
			}
			return true
		}
		if m.Freshness != fsm.FreshAlways {
			if e, ok := n.cache.listing(m.ID, rel); ok {
				n.hits.Add(1)
				emit(e.children, &listing{expires: e.expires})
				return
			}
		}
		n.misses.Add(1)
		r, err := n.joinListing(ctx, index, m, rel, 0)
		if err != nil {
			yield(file{}, err)
			return
		}
		defer r.leave()
		for {
			infos, err := r.next(ctx)
			if err != nil {
				yield(file{}, err)
				return
			}
			if len(infos) == 0 || !emit(infos, r.l) {
				return
			}
		}
	}
}

// joinListing follows the listing of a directory that is under way, or starts
// one. The caller wants most items, or all for 0.
func (n *namespace) joinListing(ctx context.Context, index uint64, m fsm.Mount, rel string, most int) (*listingReader, error) {
	key := statKey{mount: m.ID, changed: m.Changed, path: rel}
	shared := m.Freshness != fsm.FreshAlways
	n.listMu.Lock()
	defer n.listMu.Unlock()
	if l := n.lists[key]; l != nil && shared {
		if r, ok := l.join(most); ok {
			return r, nil
		}
	}
	expires, keep := n.freshness(m)
	l := newListing(n.cfg.MaxListingEntries, expires, n.absence(expires))
	r, _ := l.join(most)
	cancel, err := n.detached.start(ctx, 0, func(ctx context.Context) {
		err := n.collect(ctx, l, m, rel)
		// Kept before its callers learn of the end, who may ask the cache.
		if all, ok := l.whole(err); ok && keep && n.unchanged(m, index) {
			n.cache.putListing(m.ID, rel, all, expires, l.absence)
		}
		l.end(err)
		n.listMu.Lock()
		defer n.listMu.Unlock()
		if n.lists[key] == l {
			delete(n.lists, key)
		}
	})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.cancel = cancel
	l.mu.Unlock()
	if shared {
		n.lists[key] = l
	}
	return r, nil
}

// collect passes over a directory of an under-store.
func (n *namespace) collect(ctx context.Context, l *listing, m fsm.Mount, rel string) error {
	store, release, err := n.stores.use(ctx, m)
	if err != nil {
		return err
	}
	defer release()
	for info, err := range store.List(ctx, rel, ufs.ListOptions{}) {
		if err != nil {
			return err
		}
		if err := l.add(ctx, info); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// files streams every file below the directory p whose path sorts behind
// after, in byte order of the whole path, those of under-store mounts below p
// at their places among the others.
func (n *namespace) files(ctx context.Context, p, after string) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		if err := checkPath(p); err != nil {
			yield(file{}, err)
			return
		}
		st := n.state()
		if _, _, ok := resolve(st, p); !ok && p != "/" && !holdsMounts(st, p) {
			yield(file{}, errs.E(errs.NotFound, "list", p, errors.New("no under-store is bound here")))
			return
		}
		w := walk{n: n, ctx: ctx, st: st, after: after, yield: yield}
		w.dir(p)
	}
}

// walk is one recursive listing.
type walk struct {
	n     *namespace
	ctx   context.Context //nolint:containedctx // lives as long as the one call that it serves
	st    *fsm.State
	after string
	yield func(file, error) bool
}

// dir yields what is below p; false ends the listing.
func (w *walk) dir(p string) bool {
	if w.after != "" && w.after >= below(p) && !strings.HasPrefix(w.after, below(p)) {
		return true // all paths below p sort before after
	}
	nested := outermost(w.st, p)
	m, rel, ok := resolve(w.st, p)
	if ok {
		next, ok := w.ufs(p, m, rel, nested)
		if !ok {
			return false
		}
		nested = next
	}
	for _, mp := range nested {
		if !w.dir(mp) {
			return false
		}
	}
	return true
}

// ufs yields what the under-store has below p, with the nested mounts that
// sort before its last file; it returns those that are left.
func (w *walk) ufs(p string, m fsm.Mount, rel string, nested []string) (left []string, ok bool) {
	store, release, err := w.n.stores.use(w.ctx, m)
	if err != nil {
		w.yield(file{}, errs.Wrap(err, "list", p))
		return nil, false
	}
	defer release()
	opts := ufs.ListOptions{Recursive: true}
	if strings.HasPrefix(w.after, below(p)) {
		opts.After = relative(w.after, string(m.Path))
	}
	all := nested
	kept := w.n.newGatherer(w.st.Index, m, rel)
	defer kept.end()
	expires, _ := w.n.freshness(m)
	valid := w.n.valid(expires)
	for info, err := range store.List(w.ctx, rel, opts) {
		if err != nil {
			if len(all) > 0 && (errors.Is(err, errs.NotFound) || errors.Is(err, errs.NotDir)) {
				return nested, true
			}
			w.yield(file{}, errs.Wrap(err, "list", p))
			return nil, false
		}
		kept.add(info)
		f := file{path: absolute(string(m.Path), info.Path), mount: m, info: info, valid: valid}
		for len(nested) > 0 && below(nested[0]) < f.path {
			if !w.dir(nested[0]) {
				return nil, false
			}
			nested = nested[1:]
		}
		if shadowed(f.path, all) {
			continue
		}
		if !w.yield(f, nil) {
			return nil, false
		}
	}
	return nested, true
}

// shadowed reports whether a mount takes the place of what an under-store has
// at p: the mount is there, above it, or below it.
func shadowed(p string, mounts []string) bool {
	for _, mp := range mounts {
		if fsm.Below(p, mp) || fsm.Below(mp, p) {
			return true
		}
	}
	return false
}

// outermost returns the mount points below p that lie below no other of them,
// in the order of the files below them.
func outermost(st *fsm.State, p string) []string {
	var found []string
	for i := range st.Mounts { // in byte order: a mount comes before those below it
		mp := string(st.Mounts[i].Path)
		if mp == p || !fsm.Below(mp, p) || slices.ContainsFunc(found, func(o string) bool { return fsm.Below(mp, o) }) {
			continue
		}
		found = append(found, mp)
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(below(a), below(b)) })
	return found
}
