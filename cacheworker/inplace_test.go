package cacheworker

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/tier"
)

// placeReader reads one file as a client that has its backing file open.
type placeReader struct {
	r      *rig
	tk     *block.Ticket
	handle uint32
	fd     *os.File
	mark   uint64
	placed int // reads whose bytes were in the file
}

// reader opens tk, and its backing file as far as it is there.
func (r *rig) reader(tk *block.Ticket) (*placeReader, error) {
	p := &placeReader{r: r, tk: tk, handle: r.open(r.unix, tk)}
	var base int64
	var err error
	if p.fd, base, p.mark, err = r.unix.PartialDescriptor(r.t.Context(), p.handle); err == nil && base != 0 {
		r.t.Errorf("the bytes begin at %d", base)
	}
	return p, err
}

func (p *placeReader) close() {
	p.r.unix.CloseHandle(p.handle)
	if p.fd != nil {
		_ = p.fd.Close()
	}
}

// read reads e and checks the bytes, wherever they are.
func (p *placeReader) read(e block.Extent) (inPlace bool, err error) {
	b := make([]byte, e.Length)
	inPlace, err = p.r.unix.ReadInPlace(p.r.t.Context(), p.handle, b, e.Offset, p.mark, blockio.ReadOptions{})
	if err != nil {
		return false, err
	}
	if inPlace {
		p.placed++
		if _, err := p.fd.ReadAt(b, e.Offset); err != nil {
			p.r.t.Errorf("%v in place: %v", e, err)
		}
	}
	if !bytes.Equal(b, p.r.store.part(p.tk.Path, e)) {
		p.r.t.Errorf("%s %v: wrong bytes, in place %t", p.tk.Path, e, inPlace)
	}
	return inPlace, nil
}

func (p *placeReader) mustRead(e block.Extent, inPlace bool) {
	p.r.t.Helper()
	if was, err := p.read(e); err != nil || was != inPlace {
		p.r.t.Fatalf("%v: in place %t, %v", e, was, err)
	}
}

// TestReadInPlace reads a cold file in sequence: from when there is a backing
// file, no byte of it is sent, and all are fetched once.
func TestReadInPlace(t *testing.T) {
	r := newRig(t, rigOptions{})
	const length = 7*mib + 5
	tk := r.store.put("f", "v1", length)
	if p, err := r.reader(tk); !errors.Is(err, errs.NotCached) {
		t.Fatalf("before the first read: %v", err)
	} else {
		p.close()
	}
	r.mustRead(tk, block.Extent{Length: 300_000})
	p, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for off := int64(0); off < length; off += mib / 2 {
		p.mustRead(block.Extent{Offset: off, Length: min(mib/2, length-off)}, true)
	}
	p.mustRead(block.Extent{Offset: 3*mib + 7, Length: 100}, true)
	p.mustRead(tk.Geometry().Whole(), true)
	r.fetched(-1, length)
	if n := r.w.counters.bytesPlaced.Load(); n != 2*length+100 {
		t.Errorf("%d bytes are counted", n)
	}
	if n := r.w.counters.bytesServed.Load(); n != 2*length+100+300_000 {
		t.Errorf("%d bytes served are counted", n)
	}
	if hits, misses := r.w.counters.pageHits.Load(), r.w.counters.pageMisses.Load(); hits+misses < 2*28 || misses > 29 {
		t.Errorf("%d hits and %d misses are counted", hits, misses)
	}
}

// TestReadInPlaceAsItArrives holds the under-store in the middle of an answer:
// what arrived before is told of.
func TestReadInPlaceAsItArrives(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.ReadaheadMax = 0 }})
	tk := r.store.put("f", "v1", 8*mib)
	r.mustRead(tk, block.Extent{Offset: 7 * mib, Length: mib})
	p, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	release := make(chan struct{})
	r.store.setStall(func(_ block.Extent, given int64) {
		if given >= mib {
			<-release
		}
	})
	var g sync.WaitGroup
	g.Go(func() {
		if was, err := p.read(block.Extent{Length: 4 * mib}); err != nil || !was {
			t.Errorf("all of it: in place %t, %v", was, err)
		}
	})
	eventually(t, "the flight", func() bool { return r.store.open() > 0 })
	q, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	q.mustRead(block.Extent{Length: mib / 2}, true)
	q.mustRead(block.Extent{Offset: mib / 2, Length: mib / 2}, true)
	close(release)
	g.Wait()
	r.fetched(-1, 5*mib)
}

// TestReadInPlaceElsewhere reads what the client's file does not have, or
// somebody is to check: the bytes are sent.
func TestReadInPlaceElsewhere(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 4*mib)
	first := block.Extent{Length: mib}
	r.mustRead(tk, first)
	p, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.mustRead(first, true)
	if _, _, err := r.tier.Drop(testMount, ""); err != nil {
		t.Fatal(err)
	}
	p.mustRead(tk.Geometry().Whole(), false) // they are in another file now
	p.mustRead(first, false)
	r.sameBytes(p.fd, r.store.part("f", first)[:mib])
	q, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	if q.mark == p.mark {
		t.Fatal("another file has the same mark")
	}
	q.mustRead(first, true)

	young := r.store.put("young", "v1", 2*mib)
	young.Unsettled = true
	n, err := r.reader(young)
	if !errors.Is(err, errs.Unsupported) {
		t.Errorf("of a version that may still change: %v", err)
	}
	n.mark = q.mark
	n.mustRead(first, false)
	n.close()
}

// TestReadInPlaceVerified reads from a mount whose reads are all checked.
func TestReadInPlaceVerified(t *testing.T) {
	r := newRig(t, rigOptions{options: map[string]string{"verify": "always"}})
	tk := r.store.put("f", "v1", 4*mib)
	r.mustRead(tk, tk.Geometry().Whole())
	p, err := r.reader(tk)
	if !errors.Is(err, errs.Unsupported) {
		t.Errorf("PartialDescriptor: %v", err)
	}
	defer p.close()
	// As if it had been handed out before that was so.
	h, err := r.tier.Acquire(tier.FileOf(tk), block.Extent{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if p.fd, _, _, p.mark, err = h.HandOutFilling(); err != nil {
		t.Fatal(err)
	}
	p.mustRead(block.Extent{Length: mib}, false)
}

// TestReadInPlaceFails replaces the object under its reader: what is there is
// told of, what is not is an error, as for all others.
func TestReadInPlaceFails(t *testing.T) {
	r := newRig(t, rigOptions{cfg: func(c *Config) { c.ReadaheadMax = 0 }})
	tk := r.store.put("f", "v1", 4*mib)
	first := block.Extent{Length: mib}
	r.mustRead(tk, first)
	p, err := r.reader(tk)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	want := bytes.Clone(r.store.part("f", first))
	r.store.put("f", "v2", 5*mib)
	if _, err := p.read(block.Extent{Offset: 2 * mib, Length: mib}); !errors.Is(err, errs.Stale) {
		t.Errorf("of what is not there: %v", err)
	}
	b := make([]byte, mib)
	if was, err := r.unix.ReadInPlace(t.Context(), p.handle, b, 0, p.mark, blockio.ReadOptions{}); !was || err != nil {
		t.Errorf("of what is there: %t, %v", was, err)
	}
	if _, err := p.fd.ReadAt(b, 0); err != nil || !bytes.Equal(b, want) {
		t.Errorf("wrong bytes, %v", err)
	}
	if _, err := r.unix.ReadInPlace(t.Context(), p.handle, b, 3*mib, p.mark, blockio.ReadOptions{CachedOnly: true}); !errors.Is(err, errs.NotCached) {
		t.Errorf("from the cache alone: %v", err)
	}
}

// TestReadInPlaceUnderPressure has readers with files of twice the cache, each
// with backing files open for a while: whatever is evicted, dropped or finds no
// room, every byte is the right one.
func TestReadInPlaceUnderPressure(t *testing.T) {
	r := newRig(t, rigOptions{capacity: 48 * size.MiB, cfg: func(c *Config) { c.ReadaheadMax = mib }})
	var tickets []*block.Ticket
	for i := range 16 {
		tickets = append(tickets, r.store.put(fmt.Sprintf("f%d", i), "v1", 6*mib-int64(i)*1000))
	}
	var mu sync.Mutex
	placed, sent := 0, 0
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 9))
			for round := range 12 {
				tk := tickets[rng.IntN(len(tickets))]
				p, err := r.reader(tk)
				if errors.Is(err, errs.NotCached) {
					p.mark = 1 // nobody's
				} else if err != nil {
					t.Error(err)
					return
				}
				for range 8 {
					off := rng.Int64N(tk.Length)
					e := block.Extent{Offset: off, Length: min(1+rng.Int64N(mib), tk.Length-off)}
					was, err := p.read(e)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					if was {
						placed++
					} else {
						sent++
					}
					mu.Unlock()
				}
				p.close()
				if i == 0 && round%4 == 3 {
					if _, _, err := r.tier.Drop(testMount, tk.Path); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if placed == 0 || sent == 0 || r.tier.Stats().EvictedBytes == 0 {
		t.Errorf("%d reads in place, %d sent, %d bytes evicted", placed, sent, r.tier.Stats().EvictedBytes)
	}
}
