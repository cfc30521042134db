package cluster

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// seed is that of MILLRACE_SEED, or another each time; the test's log has it.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := rand.Uint64()
	if text := os.Getenv("MILLRACE_SEED"); text != "" {
		var err error
		n, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("MILLRACE_SEED=%d", n)
	return n
}

// TestLinearizable has clients change and read the mount table and the jobs
// while masters are killed and frozen at random, and looks for an order of all
// calls that explains every answer.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	const trouble = 20 * time.Second
	n := seed(t)
	c := start(t, 3, 0, nil)
	uris, h := stores(t), NewHistory()
	ctx, quit := context.WithTimeout(t.Context(), trouble)
	defer quit()
	var wg sync.WaitGroup
	for i := range 5 {
		cl, err := c.Client(t.Context(), nil)
		must(t, err)
		t.Cleanup(func() { _ = cl.Close() })
		p := h.Caller(i, cl, rand.New(rand.NewPCG(n, uint64(i))), uris)
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := p.Call(ctx, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	did := c.trouble(ctx, t, rand.New(rand.NewPCG(n, 99)))
	wg.Wait()
	t.Logf("%d calls; %v", h.Len(), did)
	if err := h.Check(patience); err != nil {
		t.Error(err)
	}
}

// trouble kills and freezes one master after the other, mostly the leader,
// until ctx ends, and returns how often it did what.
func (c *Cluster) trouble(ctx context.Context, t *testing.T, rnd *rand.Rand) map[string]int {
	t.Helper()
	did := map[string]int{}
	pause := func(most time.Duration) {
		select {
		case <-time.After(time.Duration(rnd.Int64N(int64(most)))):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		victim := c.Masters()[rnd.IntN(3)]
		if rnd.IntN(3) > 0 {
			victim = c.leader(t)
		}
		switch rnd.IntN(3) {
		case 0:
			did["killed"]++
			victim.Kill()
			pause(time.Second)
			must(t, victim.Start())
		case 1:
			did["frozen"]++
			must(t, victim.Pause())
			pause(4 * time.Second)
			must(t, victim.Resume())
		default:
			did["restarted"]++
			must(t, victim.Terminate(patience))
			must(t, victim.Start())
		}
		must(t, victim.Ready(bounded(t)))
		pause(time.Second)
	}
	return did
}

// TestTableFindsWrongAnswers: the model does not accept everything.
func TestTableFindsWrongAnswers(t *testing.T) {
	op := func(from, to int64, in call, out result) porcupine.Operation {
		return porcupine.Operation{Input: in, Call: from, Output: out, Return: to}
	}
	bind := op(0, 1, call{key: "/p", op: add, uri: "a"}, result{})
	for name, wrong := range map[string]porcupine.Operation{
		"lost":            op(2, 3, call{key: "/p", op: look}, result{}),
		"refused wrongly": op(2, 3, call{key: "/p", op: remove}, result{refused: true}),
		"bound twice":     op(2, 3, call{key: "/p", op: add, uri: "b"}, result{}),
	} {
		if porcupine.CheckOperations(table(), []porcupine.Operation{bind, wrong}) {
			t.Errorf("%s: the model accepts it", name)
		}
	}
	unsure := op(0, 1<<62, call{key: "/p", op: add, uri: "a"}, result{unknown: true})
	for _, seen := range []string{"", "a"} {
		if !porcupine.CheckOperations(table(), []porcupine.Operation{unsure, op(2, 3, call{key: "/p", op: look}, result{uri: seen})}) {
			t.Errorf("after an outcome that is not known, %q is refused", seen)
		}
	}
}
