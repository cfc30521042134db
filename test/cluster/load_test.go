package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"millrace/client"
)

// load is work in the background that must not see any error: readers of open
// files and of known ones, which check every byte, and writers of the
// namespace, which keep account of what was acknowledged.
type load struct {
	t    *testing.T
	quit context.CancelFunc
	wg   sync.WaitGroup

	reads, changes atomic.Int64

	mu    sync.Mutex
	errs  []error
	bound map[string]string // path -> URI, as acknowledged
	jobs  []string
}

// writersOf is how many bind and unbind under-stores, each below a path of its
// own.
const writersOf = 2

// newLoad starts the work. uris are two under-stores to be bound.
func newLoad(t *testing.T, c *Cluster, files map[string]int64, uris [2]string) *load {
	t.Helper()
	ctx, quit := context.WithCancel(t.Context())
	l := &load{t: t, quit: quit, bound: map[string]string{}}
	t.Cleanup(func() { _ = l.end() })
	cl, err := c.Client(t.Context(), func(cfg *client.Config) { cfg.ShortCircuit = false })
	must(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	for i := range 3 {
		l.wg.Go(func() { l.read(ctx, cl, files, uint64(i)) })
	}
	for i := range writersOf {
		l.wg.Go(func() { l.write(ctx, cl, fmt.Sprint("/w", i), uris, uint64(i)) })
	}
	return l
}

func (l *load) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}

// read reads known files, some of which stay open, until ctx ends.
func (l *load) read(ctx context.Context, cl *client.Client, files map[string]int64, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := slices.Sorted(maps.Keys(files))
	for ctx.Err() == nil {
		name := names[rnd.IntN(len(names))]
		if err := readWhole(ctx, cl, name, files[name]); err != nil && ctx.Err() == nil {
			l.failed(err)
			return
		}
		l.reads.Add(1)
	}
}

// write binds an under-store below its own path, looks, and unbinds it.
func (l *load) write(ctx context.Context, cl *client.Client, dir string, uris [2]string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	for n := 0; ctx.Err() == nil; n++ {
		p, uri := fmt.Sprint(dir, "/", n%5), uris[rnd.IntN(2)]
		if err := l.change(ctx, cl, p, uri, n); err != nil {
			if ctx.Err() == nil {
				l.failed(err)
			}
			return
		}
	}
}

func (l *load) change(ctx context.Context, cl *client.Client, p, uri string, n int) error {
	l.mu.Lock()
	_, bound := l.bound[p]
	l.mu.Unlock()
	if bound {
		if err := cl.RemoveUFS(ctx, p); err != nil {
			return err
		}
		l.mu.Lock()
		delete(l.bound, p)
		l.mu.Unlock()
	} else {
		if _, err := cl.AddUFS(ctx, p, uri, nil); err != nil {
			return err
		}
		l.mu.Lock()
		l.bound[p] = uri
		l.mu.Unlock()
	}
	l.changes.Add(1)
	if n%10 != 0 {
		return nil
	}
	id, err := cl.SubmitLoad(ctx, []string{p + "/none"})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.jobs = append(l.jobs, id)
	return nil
}

// more waits until that many more reads and changes are done.
func (l *load) more(reads, changes int64) {
	l.t.Helper()
	reads += l.reads.Load()
	changes += l.changes.Load()
	must(l.t, Until(bounded(l.t), func() error {
		if r, c := l.reads.Load(), l.changes.Load(); r < reads || c < changes {
			return fmt.Errorf("%d reads of %d, %d changes of %d, %w", r, reads, c, changes, l.error())
		}
		return nil
	}))
}

var errNone = errors.New("no error")

func (l *load) error() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) == 0 {
		return errNone
	}
	return errors.Join(l.errs...)
}

// end stops the work and returns what went wrong, or errNone.
func (l *load) end() error {
	l.quit()
	l.wg.Wait()
	return l.error()
}

// check ends the work: nothing may have gone wrong, and what was acknowledged
// is there.
func (l *load) check(c *Cluster) {
	l.t.Helper()
	if err := l.end(); !errors.Is(err, errNone) {
		l.t.Errorf("a client saw: %v", err)
		return
	}
	cl, err := c.Client(l.t.Context(), nil)
	must(l.t, err)
	defer cl.Close()
	mounts, err := cl.ListUFS(bounded(l.t))
	must(l.t, err)
	got := map[string]string{}
	for _, m := range mounts {
		got[m.Path] = m.URI
	}
	// What was under way at the end may have been done.
	missing := 0
	for p, uri := range l.bound {
		if got[p] != uri {
			missing++
		}
	}
	if missing > writersOf {
		l.t.Errorf("bound are %v, acknowledged were %v", got, l.bound)
	}
	for _, id := range l.jobs[max(0, len(l.jobs)-50):] { // the masters keep 100 that have ended
		if _, err := cl.Job(bounded(l.t), id); err != nil {
			l.t.Errorf("job %s, which was acknowledged: %v", id, err)
		}
	}
	l.t.Logf("%d reads, %d changes, %d jobs", l.reads.Load(), l.changes.Load(), len(l.jobs))
}
