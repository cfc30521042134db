package cachemaster

import (
	"context"
	"fmt"
	"math/bits"
	gometrics "runtime/metrics"
	"sync"
	"testing"
	"time"

	"millrace/api"
)

// manyWorkers are workers that a master has just lost all knowledge of: they
// beat, and tell what they have when they are asked. Each has blocks that are
// nobody else's; no memory holds them.
type manyWorkers struct {
	workers, blocks int
	beat            time.Duration
	part            int // blocks of one message
}

// location returns what worker w has at place i of its report.
func (m manyWorkers) location(w, i int) uint64 {
	step := ^uint64(0) / uint64(m.blocks)
	within, _ := bits.Mul64(uint64(w*m.blocks+i)*0x9e3779b97f4a7c15, step)
	return (uint64(i)*step + within) | 1
}

// run is the life of one worker until ctx ends.
func (m manyWorkers) run(ctx context.Context, t testing.TB, master api.WorkerRegistryServiceClient, w int) {
	t.Helper()
	id := fmt.Sprint("w", w)
	time.Sleep(m.beat * time.Duration(w) / time.Duration(m.workers)) // heartbeats are spread
	for sequence := uint64(0); ctx.Err() == nil; {
		r, err := master.Heartbeat(ctx, &api.HeartbeatRequest{WorkerId: id, StartEpoch: 1, Addresses: &api.WorkerAddresses{Grpc: id, Data: id}})
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		for at := 0; r.GetNeedFull() && at < m.blocks; at += m.part {
			sequence++
			end := min(at+m.part, m.blocks)
			in := &api.ReportBlocksRequest{
				WorkerId: id, StartEpoch: 1, Sequence: sequence,
				FullFirst: at == 0, FullPart: true, FullLast: end == m.blocks,
			}
			for i := at; i < end; i++ {
				in.Cached = append(in.Cached, m.location(w, i))
			}
			if _, err := master.ReportBlocks(ctx, in); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
		select {
		case <-time.After(m.beat):
		case <-ctx.Done():
		}
	}
}

// complete runs a master and the workers until it knows of every block, and
// returns how long that took and the most memory that the process had.
func (m manyWorkers) complete(t testing.TB, cfg Config) (took time.Duration, peak uint64) {
	t.Helper()
	c := start(t, t.TempDir(), nil, cfg)
	for w := range m.workers {
		if _, err := c.registry.Register(t.Context(), registration(fmt.Sprint("w", w), 1000, 800)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	var g sync.WaitGroup
	for w := range m.workers {
		g.Go(func() { m.run(ctx, t, c.registry, w) })
	}
	memory := []gometrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	eventually(t, "the block map is complete", func() bool {
		gometrics.Read(memory)
		peak = max(peak, memory[0].Value.Uint64()-memory[1].Value.Uint64())
		return c.m.blocks.Len() == m.workers*m.blocks
	})
	took = time.Since(began)
	cancel()
	g.Wait()
	for w := range m.workers {
		for _, i := range []int{0, m.blocks / 2, m.blocks - 1} {
			found := c.m.blocks.Locations(m.location(w, i) &^ 1)
			if len(found) != 1 || string(found[0].Worker) != fmt.Sprint("w", w) || !found[0].Whole {
				t.Fatalf("block %d of worker %d is at %v", i, w, found)
			}
		}
	}
	return took, peak
}

// TestManyWorkers gives a master that knows nothing what many workers have.
func TestManyWorkers(t *testing.T) {
	t.Parallel()
	m := manyWorkers{workers: 30, blocks: 20_000, beat: 20 * time.Millisecond, part: 3000}
	took, _ := m.complete(t, testConfig())
	t.Logf("%d workers with %d blocks each: complete after %v", m.workers, m.blocks, took)
}

// BenchmarkManyWorkers is the same at the size that a master is made for: 100
// workers with 1,000,000 blocks each, which it must know within a minute and in
// 2 GiB. Run it with -benchtime 1x.
func BenchmarkManyWorkers(b *testing.B) {
	m := manyWorkers{workers: 100, blocks: 1_000_000, beat: time.Second, part: 50_000}
	for b.Loop() {
		took, peak := m.complete(b, DefaultConfig())
		if took > time.Minute || peak > 2<<30 {
			b.Errorf("complete after %v, with %d MiB", took, peak>>20)
		}
		b.ReportMetric(took.Seconds(), "s-to-complete")
		b.ReportMetric(float64(peak)/(1<<20), "MiB-peak")
	}
}
