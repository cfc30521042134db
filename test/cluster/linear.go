package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
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
		Partition: func(calls []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, o := range calls {
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

// History records what clients did to the mount table and to load jobs.
type History struct {
	began time.Time

	mu  sync.Mutex
	all []porcupine.Operation
}

// NewHistory returns an empty history that begins now.
func NewHistory() *History { return &History{began: time.Now()} }

// enter records a call that is over. One of unknown outcome may take effect at
// any time after it began.
func (h *History) enter(who int, in call, began time.Time, out result) {
	end := int64(time.Since(h.began))
	if out.unknown {
		end = 1 << 62
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, porcupine.Operation{ClientId: who, Input: in, Call: int64(began.Sub(h.began)), Output: out, Return: end})
}

// Len returns how many calls there are.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// Check looks for an order of all calls that explains every answer, for each
// path and each job at most as long as patience says. nil: there is one.
func (h *History) Check(patience time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []error
	for _, part := range table().Partition(h.all) {
		if got := porcupine.CheckOperationsTimeout(table(), part, patience); got != porcupine.Ok {
			list = append(list, fmt.Errorf("the %d calls on %s are not linearizable: %s", len(part), part[0].Input.(call).key, got))
		}
	}
	return errors.Join(list...)
}

// Caller is one client that calls at random. It is for one goroutine.
type Caller struct {
	number int
	cl     *client.Client
	h      *History
	rnd    *rand.Rand
	uris   [2]string
	round  int
	jobs   []string
}

// Caller returns a client with a number of its own in the history, which binds
// either URI to paths that all callers share.
func (h *History) Caller(number int, cl *client.Client, rnd *rand.Rand, uris [2]string) *Caller {
	return &Caller{number: number, cl: cl, h: h, rnd: rnd, uris: uris}
}

const linearPaths = 3

func (p *Caller) path(i int) string { return fmt.Sprintf("/p%d-%d", p.round, i) }

// Call makes one call at random and records it. Each round has paths of its
// own, which keeps the history of one path short enough to be checked. An error
// is one that neither says that the call was refused rightly nor leaves open
// whether it was done.
func (p *Caller) Call(ctx context.Context, round int) error {
	p.round = round
	began, path := time.Now(), p.path(p.rnd.IntN(linearPaths))
	switch p.rnd.IntN(6) {
	case 0, 1:
		uri := p.uris[p.rnd.IntN(2)]
		_, err := p.cl.AddUFS(ctx, path, uri, nil)
		return p.enter(call{key: path, op: add, uri: uri}, began, err, errs.Exists)
	case 2:
		return p.enter(call{key: path, op: remove}, began, p.cl.RemoveUFS(ctx, path), errs.NotFound)
	case 3:
		return p.list(ctx, began)
	case 4:
		return p.submit(ctx, began)
	default:
		return p.job(ctx)
	}
}

// Look records what is bound to the paths of a round, and the state of the
// caller's own jobs: what was acknowledged before must be there.
func (p *Caller) Look(ctx context.Context, round int) error {
	p.round = round
	if err := p.list(ctx, time.Now()); err != nil {
		return err
	}
	for _, id := range p.jobs {
		if err := p.lookAt(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// enter records a call. An error that is neither a refusal nor unknown is
// returned.
func (p *Caller) enter(in call, began time.Time, err error, refusal errs.Kind) error {
	out := result{unknown: unknown(err), refused: err != nil && errs.KindOf(err) == refusal}
	if err != nil && !out.unknown && !out.refused {
		return err
	}
	p.h.enter(p.number, in, began, out)
	return nil
}

func (p *Caller) list(ctx context.Context, began time.Time) error {
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
		key := p.path(i)
		p.h.enter(p.number, call{key: key, op: look}, began, result{uri: seen[key]})
	}
	return nil
}

// maxJobs bounds the jobs of one caller, so that the masters forget none.
const maxJobs = 15

func (p *Caller) submit(ctx context.Context, began time.Time) error {
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

func (p *Caller) job(ctx context.Context) error {
	if len(p.jobs) == 0 {
		return nil
	}
	return p.lookAt(ctx, p.jobs[p.rnd.IntN(len(p.jobs))])
}

func (p *Caller) lookAt(ctx context.Context, id string) error {
	began := time.Now()
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

// unknown reports whether an error leaves open if the call was done.
func unknown(err error) bool {
	return slices.Contains([]errs.Kind{errs.Unavailable, errs.Timeout, errs.Canceled}, errs.KindOf(err))
}
