package client

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
)

// recallingWorker is a localWorker that wants descriptors back.
type recallingWorker struct {
	*localWorker

	mu     sync.Mutex
	answer *blockio.Recalls // nil: it gives none
	since  uint64           // from which the last one was asked for
}

func newRecallingCluster(t *testing.T) (*cluster, *recallingWorker) {
	t.Helper()
	w := &recallingWorker{}
	cl, _ := newLocalClusterWith(t, func(local *localWorker) blockio.Handler {
		w.localWorker = local
		return w
	})
	return cl, w
}

// Recalls implements blockio.Recaller: each answer is given once.
func (w *recallingWorker) Recalls(_ context.Context, since uint64) (blockio.Recalls, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.answer == nil {
		return blockio.Recalls{}, errs.E(errs.Unavailable, "", "", errors.New("not now"))
	}
	v := *w.answer
	w.answer, w.since = nil, since
	return v, nil
}

// say has the client hear v, which has a position of its own.
func (w *recallingWorker) say(t *testing.T, c *Client, v blockio.Recalls) {
	t.Helper()
	w.mu.Lock()
	w.answer = &v
	w.mu.Unlock()
	c.descriptors.askRecalls(t.Context(), c.workers) // or the client has done it by itself
	eventually(t, "the answer was heard", func() bool {
		c.descriptors.mu.Lock()
		defer c.descriptors.mu.Unlock()
		return c.descriptors.keepers["w0"].position == v.Position
	})
}

// keptFile is a file with a descriptor.
type keptFile struct {
	t  *testing.T
	c  *Client
	id block.FileID
	p  string
}

func newKeptFile(t *testing.T, cl *cluster, c *Client, p string) *keptFile {
	t.Helper()
	tk := cl.master.addFile(p, "1", 1000, block.DefaultBlockSize, time.Time{})
	return &keptFile{t, c, tk.FileID, p}
}

// take returns the descriptor.
func (f *keptFile) take() *Descriptor {
	f.t.Helper()
	file, err := f.c.Open(f.t.Context(), f.p)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	d, err := file.Descriptor(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// use takes the descriptor and gives it back.
func (f *keptFile) use() *Descriptor {
	f.t.Helper()
	d := f.take()
	if err := d.Close(); err != nil {
		f.t.Fatal(err)
	}
	return d
}

// isOpen reports whether the descriptor is open.
func isOpen(d *Descriptor) bool {
	_, err := d.File.Stat()
	return !errors.Is(err, os.ErrClosed)
}

// A descriptor that nobody uses is kept for as long as its worker lets it stay,
// and given to others however old it is.
func TestKeptDescriptors(t *testing.T) {
	for name, tc := range map[string]struct {
		idle  time.Duration
		after time.Duration // that nobody used it
		kept  bool
	}{
		"any time":         {blockio.AnyTime, answerHolds - time.Second, true},
		"for a while":      {3 * time.Second, 2 * time.Second, true},
		"no longer":        {3 * time.Second, 3 * time.Second, false},
		"not heard lately": {blockio.AnyTime, answerHolds + time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			cl, w := newRecallingCluster(t)
			c := cl.dial(t)
			f := newKeptFile(t, cl, c, "/a")
			first := f.take()
			w.say(t, c, blockio.Recalls{Position: 7, Idle: tc.idle})
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			s := c.descriptors
			s.closeIdle(time.Now().Add(tc.after))
			if isOpen(first) != tc.kept {
				t.Fatalf("open: %v", isOpen(first))
			}
			s.mu.Lock()
			if old := s.files[f.id]; old != nil {
				old.came = time.Now().Add(-2 * descriptorKept)
			}
			s.mu.Unlock()
			asked := w.asked.Load()
			again := f.use()
			if (again.File == first.File) != tc.kept || (w.asked.Load() == asked) != tc.kept {
				t.Errorf("the same: %v, asked %d times", again.File == first.File, w.asked.Load()-asked)
			}
		})
	}
}

// Without an answer for a while, a descriptor is given to nobody after a
// minute.
func TestKeptDescriptorOfSilentWorker(t *testing.T) {
	cl, w := newRecallingCluster(t)
	c := cl.dial(t)
	f := newKeptFile(t, cl, c, "/a")
	first := f.take()
	w.say(t, c, blockio.Recalls{Position: 7, Idle: blockio.AnyTime})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s := c.descriptors
	s.mu.Lock()
	s.files[f.id].came = time.Now().Add(-2 * descriptorKept)
	s.keepers["w0"].answered = time.Now().Add(-answerHolds)
	s.mu.Unlock()
	if again := f.use(); again.File == first.File || w.asked.Load() != 2 {
		t.Errorf("the worker was asked %d times", w.asked.Load())
	}
}

// What a worker wants back is closed when nobody uses it, and given to nobody
// behind its last user.
func TestRecalls(t *testing.T) {
	cl, w := newRecallingCluster(t)
	c := cl.dial(t)
	a, b := newKeptFile(t, cl, c, "/a"), newKeptFile(t, cl, c, "/b")
	used := newKeptFile(t, cl, c, "/used")
	first := used.take() // the worker is asked as long as it has something out
	w.say(t, c, blockio.Recalls{Position: 7, Idle: blockio.AnyTime})
	recalled, kept, inUse := a.use(), b.use(), used.take()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	w.say(t, c, blockio.Recalls{Position: 9, Idle: blockio.AnyTime, Files: []block.FileID{a.id, used.id, {1}}})
	if isOpen(recalled) || !isOpen(kept) || !isOpen(inUse) {
		t.Fatalf("open: the recalled one %v, the other %v, the used one %v", isOpen(recalled), isOpen(kept), isOpen(inUse))
	}
	if d := used.use(); d.File != inUse.File { // shared as long as it is used
		t.Error("a descriptor in use was not shared")
	}
	if err := inUse.Close(); err != nil || isOpen(inUse) {
		t.Errorf("open behind its last user: %v, %v", isOpen(inUse), err)
	}
	if d := a.use(); d.File == recalled.File || !isOpen(d) { // asked anew, and kept
		t.Error("not asked anew")
	}

	inUse = used.take()
	w.say(t, c, blockio.Recalls{Position: 20, Idle: 0})
	w.mu.Lock()
	if w.since != 9 {
		t.Errorf("asked from %d, want 9", w.since)
	}
	w.mu.Unlock()
	if n := c.descriptors.known(b.id); n != nil || isOpen(kept) {
		t.Error("not everything was given back")
	}
	if err := inUse.Close(); err != nil || isOpen(inUse) {
		t.Errorf("open behind its last user: %v, %v", isOpen(inUse), err)
	}
	if d := b.use(); !isOpen(d) {
		t.Error("what comes behind a recall is not kept")
	}
}

// A descriptor that was asked for before a recall was heard may be one that is
// recalled: it is not kept.
func TestRecallOfWhatIsOnItsWay(t *testing.T) {
	cl, w := newRecallingCluster(t)
	c := cl.dial(t)
	f, other := newKeptFile(t, cl, c, "/a"), newKeptFile(t, cl, c, "/b")
	kept := other.take() // so that the worker is asked what it recalls
	w.say(t, c, blockio.Recalls{Position: 7, Idle: blockio.AnyTime})

	w.localWorker.mu.Lock() // it is handing out
	got := make(chan *Descriptor)
	go func() { got <- f.take() }()
	eventually(t, "the worker is asked", func() bool { return w.asked.Load() == 2 })
	w.say(t, c, blockio.Recalls{Position: 9, Idle: blockio.AnyTime, Files: []block.FileID{f.id}})
	w.localWorker.mu.Unlock()
	d := <-got
	if err := d.Close(); err != nil || isOpen(d) {
		t.Errorf("it was kept: %v, %v", isOpen(d), err)
	}
	if err := kept.Close(); err != nil || !isOpen(kept) {
		t.Errorf("the other one was closed: %v", err)
	}
}

// The client asks by itself, as soon as it has something.
func TestRecallsAreAskedFor(t *testing.T) {
	cl, w := newRecallingCluster(t)
	c := cl.dial(t)
	w.mu.Lock()
	w.answer = &blockio.Recalls{Position: 7, Idle: blockio.AnyTime}
	w.mu.Unlock()
	f := newKeptFile(t, cl, c, "/a")
	f.use()
	eventually(t, "the worker's answer is known", func() bool {
		c.descriptors.mu.Lock()
		defer c.descriptors.mu.Unlock()
		k := c.descriptors.keepers["w0"]
		return k != nil && k.position == 7
	})
}
