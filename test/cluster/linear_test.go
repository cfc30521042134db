package cluster

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"millrace/client"
	"millrace/internal/errs"
)

// call is an operation on one path of the mount table, or on one load job.
type call struct {
	key string // what it is on
	op  operation
	uri string // of add
}

type operation int

const (
	add operation = iota
	remove
	look
)

// result is what a call returned.
type result struct {
	unknown bool   // it may have been done, or be done yet
	refused bool   // add: taken by another; remove and look at a job: not there
	uri     string // of look
}

// table is the model: each path has an under-store or none, each job is there
// or not.
func table() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, o := range history {
				byKey[o.Input.(call).key] = append(byKey[o.Input.(call).key], o)
			}
			return slices.Collect(maps.Values(byKey))
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			bound, in, out := state.(string), input.(call), output.(result)
			switch in.op {
			case add:
				taken := bound != "" && bound != in.uri
				if taken {
					return out.unknown || out.refused, bound
				}
				return out.unknown || !out.refused, in.uri
			case remove:
				return out.unknown || out.refused == (bound == ""), ""
			default:
				return out.unknown || out.uri == bound, bound
			}
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
}

// history records what clients did.
type history struct {
	began time.Time

	mu  sync.Mutex
	all []porcupine.Operation
}

// enter records a call that is over. One of unknown outcome may take effect at
// any time after it began.
func (h *history) enter(who int, in call, began time.Time, out result) {
	end := int64(time.Since(h.began))
	if out.unknown {
		end = 1 << 62
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, porcupine.Operation{ClientId: who, Input: in, Call: int64(began.Sub(h.began)), Output: out, Return: end})
}

// person is one client that calls at random.
type person struct {
	number int
	cl     *client.Client
	h      *history
	rnd    *rand.Rand
	uris   [2]string
	jobs   []string
}

const linearPaths = 3

func (p *person) run(ctx context.Context) error {
	for ctx.Err() == nil {
		began := time.Now()
		path := fmt.Sprint("/p", p.rnd.IntN(linearPaths))
		var err error
		switch p.rnd.IntN(6) {
		case 0, 1:
			uri := p.uris[p.rnd.IntN(2)]
			_, err = p.cl.AddUFS(ctx, path, uri, nil)
			err = p.enter(call{key: path, op: add, uri: uri}, began, err, errs.Exists)
		case 2:
			err = p.enter(call{key: path, op: remove}, began, p.cl.RemoveUFS(ctx, path), errs.NotFound)
		case 3:
			err = p.list(ctx, began)
		case 4:
			err = p.submit(ctx, began)
		default:
			err = p.job(ctx, began)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enter records a call. An error that is neither a refusal nor unknown fails
// the test.
func (p *person) enter(in call, began time.Time, err error, refusal errs.Kind) error {
	out := result{unknown: unknown(err), refused: err != nil && errs.KindOf(err) == refusal}
	if err != nil && !out.unknown && !out.refused {
		return err
	}
	p.h.enter(p.number, in, began, out)
	return nil
}

func (p *person) list(ctx context.Context, began time.Time) error {
	mounts, err := p.cl.ListUFS(ctx)
	if unknown(err) {
		return nil // it changes nothing, and saw nothing
	}
	if err != nil {
		return err
	}
	seen := map[string]string{}
	for _, m := range mounts {
		seen[m.Path] = m.URI
	}
	for i := range linearPaths {
		key := fmt.Sprint("/p", i)
		p.h.enter(p.number, call{key: key, op: look}, began, result{uri: seen[key]})
	}
	return nil
}

// maxJobs bounds the jobs of one person, so that the masters forget none.
const maxJobs = 20

func (p *person) submit(ctx context.Context, began time.Time) error {
	if len(p.jobs) == maxJobs {
		return nil
	}
	id, err := p.cl.SubmitLoad(ctx, []string{"/none"})
	if unknown(err) {
		return nil // whatever it made has no name
	}
	if err == nil {
		p.jobs = append(p.jobs, id)
	}
	return p.enter(call{key: id, op: add, uri: "job"}, began, err, errs.Exists)
}

func (p *person) job(ctx context.Context, began time.Time) error {
	if len(p.jobs) == 0 {
		return nil
	}
	id := p.jobs[p.rnd.IntN(len(p.jobs))]
	_, err := p.cl.Job(ctx, id)
	switch {
	case unknown(err):
		return nil
	case errs.KindOf(err) == errs.NotFound:
		p.h.enter(p.number, call{key: id, op: look}, began, result{})
		return nil
	case err == nil:
		p.h.enter(p.number, call{key: id, op: look}, began, result{uri: "job"})
	}
	return err
}

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
	const trouble = 20 * time.Second
	n := seed(t)
	c := start(t, 3, 0, nil)
	uris, h := stores(t), &history{began: time.Now()}
	ctx, quit := context.WithTimeout(t.Context(), trouble)
	defer quit()
	var wg sync.WaitGroup
	for i := range 5 {
		cl, err := c.Client(t.Context(), nil)
		must(t, err)
		t.Cleanup(func() { _ = cl.Close() })
		p := &person{number: i, cl: cl, h: h, rnd: rand.New(rand.NewPCG(n, uint64(i))), uris: uris}
		wg.Go(func() {
			if err := p.run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	did := c.trouble(ctx, t, rand.New(rand.NewPCG(n, 99)))
	wg.Wait()
	t.Logf("%d calls; %v", len(h.all), did)
	for _, part := range table().Partition(h.all) {
		if got := porcupine.CheckOperationsTimeout(table(), part, patience); got != porcupine.Ok {
			t.Errorf("the %d calls on %s are not linearizable: %s", len(part), part[0].Input.(call).key, got)
		}
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
