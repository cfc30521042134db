package cacheworker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
	"millrace/blockio"
	"millrace/internal/doubt"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// pair is a worker that may have what another one, with an under-store of the
// same files, is asked for.
type pair struct {
	*rig
	other  *rig
	master *fakeMaster
}

func newPair(t *testing.T) *pair {
	t.Helper()
	return newPairWith(t, time.Minute) // so that a busy machine makes no difference
}

func newPairWith(t *testing.T, timeout time.Duration) *pair {
	t.Helper()
	m := newFakeMaster()
	addr := startMaster(t, m)
	p := &pair{other: newRig(t, rigOptions{masters: []string{addr}}), master: m}
	p.rig = newRig(t, rigOptions{masters: []string{addr}, cfg: func(c *Config) { c.PeerTimeout = size.Duration(timeout) }})
	m.set(func() { m.holders = []*api.Holder{p.other.holder()} })
	return p
}

// holder is the worker as masters name it.
func (r *rig) holder() *api.Holder {
	return &api.Holder{Id: string(r.w.ID()), Addresses: &api.WorkerAddresses{Data: r.w.deps.Data.Addr().String()}}
}

// put makes a file that both under-stores have.
func (p *pair) put(path string, length int64) *block.Ticket {
	p.other.store.put(path, "v1", length)
	return p.store.put(path, "v1", length)
}

// had checks how many requests to the other worker ended in each way. They are
// counted when they have, which a reader does not wait for.
func (p *pair) had(served, missing, failed int64) {
	p.t.Helper()
	c := p.w.counters
	ended := func() int64 { return c.peerServed.Load() + c.peerMissing.Load() + c.peerFailed.Load() }
	eventually(p.t, "the end of all requests to the other worker", func() bool { return ended() >= served+missing+failed })
	if s, m, f := c.peerServed.Load(), c.peerMissing.Load(), c.peerFailed.Load(); s != served || m != missing || f != failed {
		p.t.Errorf("requests to the other worker: %d served, %d missing, %d failed; want %d, %d, %d", s, m, f, served, missing, failed)
	}
}

// TestPeerHasIt reads what another worker has: the under-store is not asked.
func TestPeerHasIt(t *testing.T) {
	for _, length := range []int64{1, block.PageSize, 3*mib + 777, 12 * mib} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			p := newPair(t)
			tk := p.put("f", length)
			p.other.mustRead(tk, tk.Geometry().Whole())
			p.mustRead(tk, tk.Geometry().Whole())
			p.fetched(0, 0)
			mine, others := p.w.counters, p.other.w.counters
			eventually(t, "the count of what the other worker sent", func() bool { // it is counted behind its last byte
				return mine.peerBytes.Load() == length && others.peerSent.Load() == length
			})
			if n := others.bytesServed.Load(); n != length {
				t.Errorf("the other worker served %d bytes, want %d", n, length)
			}
			p.mustRead(tk, tk.Geometry().Whole())
			if _, n := p.tier.Cached(tk.FileID); n != length {
				t.Errorf("%d bytes are kept, want %d", n, length)
			}
		})
	}
}

// TestPeerHasNothing is a false hint: it costs one quick no, and who is asked
// asks nobody in turn.
func TestPeerHasNothing(t *testing.T) {
	p := newPair(t)
	p.master.set(func() { p.master.holders = []*api.Holder{p.holder(), p.other.holder()} })
	tk := p.put("f", block.PageSize)
	p.mustRead(tk, tk.Geometry().Whole())
	p.fetched(1, tk.Length)
	p.had(0, 1, 0)
	p.other.fetched(0, 0)
	p.master.set(func() {
		for _, in := range p.master.finds {
			if in.GetWorkerId() != string(p.w.ID()) {
				t.Errorf("worker %s, which was asked for what it has, asked who has it", in.GetWorkerId())
			}
		}
	})
	q := p.put("g", block.PageSize) // it is not avoided for that
	p.mustRead(q, q.Geometry().Whole())
	p.had(0, 2, 0)
}

// TestPeerHasPart has the first pages from the other worker and the rest from
// the under-store, each once.
func TestPeerHasPart(t *testing.T) {
	p := newPair(t)
	tk := p.put("f", 3*mib)
	head := tk.Geometry().PagesExtent(0, 4) // a chunk of what is asked at a time
	p.other.mustRead(tk, head)
	p.mustRead(tk, tk.Geometry().Whole())
	p.fetched(-1, tk.Length-head.Length)
	if n := p.w.counters.peerBytes.Load(); n != head.Length {
		t.Errorf("%d bytes came from the other worker, want %d", n, head.Length)
	}
}

// TestPeerIsDamaged: bytes that are wrong on the other worker's disk are
// neither served nor kept.
func TestPeerIsDamaged(t *testing.T) {
	p := newPair(t)
	tk := p.put("f", 3*mib)
	const at = 2*mib + 100
	p.other.mustRead(tk, tk.Geometry().Whole())
	damage(t, p.other.dir, p.other.store.data("f")[at:at+64])
	p.mustRead(tk, tk.Geometry().Whole()) // checks the bytes
	if _, n := p.store.fetched(); n == 0 || n > tk.Length/2 {
		t.Errorf("%d bytes were fetched for one damaged page", n)
	}
}

// TestPeerIsGone goes to the under-store at once, and does not ask the other
// worker again for a while.
func TestPeerIsGone(t *testing.T) {
	p := newPair(t)
	tk := p.put("f", 5*mib)
	p.other.stop()
	p.mustRead(tk, tk.Geometry().Whole())
	p.fetched(-1, tk.Length)
	p.otherIsDoubted()
}

// otherIsDoubted checks that many do not ask the other worker at once.
func (p *pair) otherIsDoubted() {
	p.t.Helper()
	peers := p.w.fetcher.peers
	peers.mu.Lock()
	defer peers.mu.Unlock()
	x := peers.known[p.other.w.ID()]
	x.doubt.Try() // perhaps the pause is over by now, and this is the one that may
	if x.doubt.Try() {
		p.t.Error("the worker is asked again at once")
	}
}

// TestPeerIsFrozen waits for a worker that accepts and says nothing no longer
// than it is told to, and then not for a while.
func TestPeerIsFrozen(t *testing.T) {
	p := newPairWith(t, 200*time.Millisecond)
	l := listen(t, "tcp", "127.0.0.1:0")
	var accepted atomic.Int32
	var conns []net.Conn
	var g sync.WaitGroup
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			conns = append(conns, c)
		}
	})
	defer func() {
		l.Close()
		g.Wait()
		for _, c := range conns {
			c.Close()
		}
	}()
	frozen := p.other.holder()
	frozen.Addresses.Data = l.Addr().String()
	p.master.set(func() { p.master.holders = []*api.Holder{frozen} })
	for i := 0; accepted.Load() == 0; i++ { // the question may not be answered in time either
		tk := p.put(fmt.Sprint("f", i), mib)
		p.mustRead(tk, tk.Geometry().Whole())
		p.fetched(-1, mib)
	}
	p.otherIsDoubted()
}

// TestPeerWithoutRoom: without room here the other worker serves what it has,
// and the under-store the rest, unkept.
func TestPeerWithoutRoom(t *testing.T) {
	m := newFakeMaster()
	addr := startMaster(t, m)
	patient := func(c *Config) { c.PeerTimeout = size.Duration(time.Minute) }
	other, r := newRig(t, rigOptions{}), newRig(t, rigOptions{masters: []string{addr}, capacity: 4 * mib, cfg: patient})
	m.set(func() { m.holders = []*api.Holder{other.holder()} })
	other.store.put("big", "v1", 12*mib)
	tk := r.store.put("big", "v1", 12*mib)
	half := block.Extent{Length: 6 * mib}
	other.mustRead(tk, half)
	r.mustRead(tk, half)
	if gets, n := r.store.fetched(); gets != 0 {
		t.Errorf("%d requests to the under-store, %d bytes, for what the other worker has", gets, n)
	}
	r.mustRead(tk, tk.Geometry().Whole())
	if _, n := r.store.fetched(); n != 6*mib {
		t.Errorf("%d bytes came from the under-store, want those that the other worker does not have", n)
	}
}

// finderFunc is a master that is asked who has blocks.
type finderFunc func(*api.FindBlocksRequest) (*api.FindBlocksReply, error)

func (f finderFunc) FindBlocks(_ context.Context, in *api.FindBlocksRequest, _ ...grpc.CallOption) (*api.FindBlocksReply, error) {
	return f(in)
}

func only(masters ...finder) func() []finder { return func() []finder { return masters } }

func key(i int) block.Key { return block.Key{Index: uint32(i)} }

// TestLocatorBatches: what is asked while a question is under way goes with
// one further question, and each gets its own answer.
func TestLocatorBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var sizes []int
		l := newLocator(only(finderFunc(func(in *api.FindBlocksRequest) (*api.FindBlocksReply, error) {
			sizes = append(sizes, len(in.GetBlocks()))
			<-goOn
			out := &api.FindBlocksReply{Others: 1}
			for i, hash := range in.GetBlocks() {
				out.Workers = append(out.Workers, &api.Holder{Id: fmt.Sprint(hash)})
				out.Blocks = append(out.Blocks, &api.Holders{Workers: []uint32{uint32(i), 1 << 20}})
			}
			return out, nil
		})), "self", time.Minute, slog.New(slog.DiscardHandler))
		var g sync.WaitGroup
		ask := func(i int) {
			g.Go(func() {
				got, _ := l.find(t.Context(), key(i), 1, "")
				if len(got) != 1 || got[0].GetId() != fmt.Sprint(key(i).LocationHash()) {
					t.Errorf("block %d is at %v", i, got)
				}
			})
			synctest.Wait()
		}
		ask(0)
		for i := range locateBatch + 10 {
			ask(i)
		}
		close(goOn)
		g.Wait()
		if len(sizes) != 3 || sizes[0] != 1 || sizes[1]+sizes[2] != locateBatch+10 {
			t.Errorf("questions of %v blocks", sizes)
		}
	})
}

// TestLocatorAsksWhoAnswers: after a failure nobody is asked for a moment, and
// then the next master; nor where there is no other worker, until the placement
// changes.
func TestLocatorAsksWhoAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked [2]int
		alone := false
		bad := finderFunc(func(*api.FindBlocksRequest) (*api.FindBlocksReply, error) {
			asked[0]++
			return nil, errs.Unavailable
		})
		good := finderFunc(func(*api.FindBlocksRequest) (*api.FindBlocksReply, error) {
			asked[1]++
			if alone {
				return &api.FindBlocksReply{}, nil
			}
			return &api.FindBlocksReply{
				Others: 1, Workers: []*api.Holder{{Id: "w"}}, Blocks: []*api.Holders{{Workers: []uint32{0}}},
			}, nil
		})
		l := newLocator(only(bad, good), "self", time.Minute, slog.New(slog.DiscardHandler))
		for i, step := range []struct {
			epoch      uint64
			after      time.Duration
			alone      bool
			bad, good  int
			wantHolder bool
		}{
			{1, 0, false, 1, 0, false},
			{1, 0, false, 1, 0, false},
			{1, locatePause, false, 1, 1, true},
			{1, 0, false, 1, 2, true},
			{1, 0, true, 1, 3, false},
			{1, 0, false, 1, 3, false},
			{2, 0, false, 1, 4, true},
		} {
			time.Sleep(step.after)
			alone = step.alone
			holders, _ := l.find(t.Context(), key(0), step.epoch, "")
			if asked != [2]int{step.bad, step.good} || (len(holders) == 1) != step.wantHolder {
				t.Errorf("step %d: asked %v, holders %v", i, asked, holders)
			}
		}
	})
}

// TestPeersAreBounded forgets the one that was unused for longest, and avoids
// one that fails for longer each time.
func TestPeersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peers{known: make(map[block.WorkerID]*peer), config: blockio.DefaultClientConfig()}
		holder := func(i int) *api.Holder {
			return &api.Holder{Id: fmt.Sprint("w", i), Addresses: &api.WorkerAddresses{Data: fmt.Sprint("h:", i)}}
		}
		for i := range maxPeers + 1 {
			time.Sleep(time.Millisecond)
			if _, err := p.peer(holder(i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, kept := p.known["w0"]; kept || len(p.known) != maxPeers {
			t.Errorf("%d workers are known, the oldest among them: %v", len(p.known), kept)
		}
		for _, seconds := range []int{1, 2, 4, 8, 10, 10} {
			pause := time.Duration(seconds) * time.Second
			p.judge(holder(5), errs.E(errs.Timeout, "", "", nil))
			p.judge(holder(5), errs.E(errs.Timeout, "", "", nil)) // another one that waited for it
			time.Sleep(pause - time.Nanosecond)
			if _, err := p.peer(holder(5)); err == nil {
				t.Errorf("asked before %v are over", pause)
			}
			time.Sleep(time.Nanosecond)
			if _, err := p.peer(holder(5)); err != nil {
				t.Errorf("after %v: %v", pause, err)
			}
			_, err := p.peer(holder(5))
			p.judge(holder(5), err) // that nobody asks it says nothing about it
			if err == nil {
				t.Errorf("after %v many ask it at once", pause)
			}
		}
		p.judge(holder(5), errs.NotCached)
		p.judge(holder(5), errs.E(errs.Unavailable, "", "", nil))
		time.Sleep(doubt.Least)
		if _, err := p.peer(holder(5)); err != nil {
			t.Errorf("an answer does not end the doubt: %v", err)
		}
		moved := holder(5)
		moved.Addresses.Data = "elsewhere:1"
		p.judge(holder(5), errs.E(errs.Unavailable, "", "", nil))
		if x, err := p.peer(moved); err != nil || x.address != "elsewhere:1" {
			t.Errorf("at its new address: %v, %v", x, err)
		}
	})
}
