package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"millrace/internal/testenv"
	"millrace/test/cluster"
)

// fault is one bad thing. It returns when all is repaired.
type fault func(ctx context.Context, rng *rand.Rand) error

// trouble lets one fault happen after the other until ctx ends. What is begun
// is finished, also when the time is over.
func (w *world) trouble(ctx context.Context, rng *rand.Rand, faults []fault) error {
	for sleep(ctx, between(rng, 500*time.Millisecond, 4*time.Second)) {
		f := faults[rng.IntN(len(faults))]
		w.calm.RLock()
		err := f(context.WithoutCancel(ctx), rng)
		w.calm.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) troubleMasters(ctx context.Context, rng *rand.Rand) error {
	leader := choice{"the leader", func(ctx context.Context, _ *rand.Rand) (*cluster.Process, error) { return w.leader(ctx) }}
	random := choice{"a master", func(_ context.Context, rng *rand.Rand) (*cluster.Process, error) {
		return w.cluster.Masters()[rng.IntN(masters)], nil
	}}
	faults := []fault{w.killLeader, w.killLeader, w.kill(random), w.pause(leader), w.pause(random), w.restart(leader), w.restart(random)}
	if w.net != nil {
		faults = append(faults, w.isolate(leader), w.isolate(random), w.splitWorkers)
	}
	return w.trouble(ctx, rng, faults)
}

func (w *world) troubleWorkers(ctx context.Context, rng *rand.Rand) error {
	random := choice{"a worker", func(_ context.Context, rng *rand.Rand) (*cluster.Process, error) {
		return w.cluster.Workers()[rng.IntN(workers)], nil
	}}
	faults := []fault{w.kill(random), w.kill(random), w.pause(random), w.restart(random)}
	if w.net != nil {
		faults = append(faults, w.isolate(random), w.hide)
		if w.net.lossy == nil {
			faults = append(faults, w.dropPackets)
		}
	}
	return w.trouble(ctx, rng, faults)
}

// choice chooses the process that something happens to.
type choice struct {
	what string
	pick func(ctx context.Context, rng *rand.Rand) (*cluster.Process, error)
}

// leader waits for the one that leads.
func (w *world) leader(ctx context.Context) (*cluster.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return w.cluster.Leader(ctx)
}

// begin starts a process and waits until it is ready.
func (w *world) begin(ctx context.Context, p *cluster.Process) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := p.Start(); err != nil {
		return err
	}
	return p.Ready(ctx)
}

func (w *world) kill(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		w.happenTo("kill -9 "+who.what, p)
		p.Kill()
		sleep(ctx, between(rng, 0, 5*time.Second))
		return w.begin(ctx, p)
	}
}

func (w *world) restart(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		w.happenTo("restart "+who.what, p)
		if err := p.Terminate(settle); err != nil {
			return err
		}
		return w.begin(ctx, p)
	}
}

func (w *world) pause(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		w.happenTo("SIGSTOP "+who.what, p)
		if err := p.Pause(); err != nil {
			return err
		}
		sleep(ctx, w.frozen)
		if err := p.Resume(); err != nil {
			return err
		}
		return w.ready(ctx, p)
	}
}

// ready waits until a process that was away is back.
func (w *world) ready(ctx context.Context, p *cluster.Process) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return p.Ready(ctx)
}

// killLeader kills the leader and measures how long it holds up changes of the
// mount table.
func (w *world) killLeader(ctx context.Context, _ *rand.Rand) error {
	p, err := w.leader(ctx)
	if err != nil {
		return err
	}
	path := fmt.Sprint("/after-kill-", w.tally.kills())
	p.Kill()
	began := time.Now()
	if _, err := w.admin.AddUFS(ctx, path, w.stores[0], nil); err != nil {
		return fmt.Errorf("a change after the leader was killed: %w", err)
	}
	took := time.Since(began)
	w.tally.failOver(took)
	w.happenTo("kill -9 the leader", p)
	w.say("the next change took %v", took.Round(time.Millisecond))
	if err := w.begin(ctx, p); err != nil {
		return err
	}
	return w.admin.RemoveUFS(ctx, path)
}

// killLeaders kills leaders until it was done so many times.
func (w *world) killLeaders(ctx context.Context, rng *rand.Rand, times int) error {
	for w.tally.kills() < times && ctx.Err() == nil {
		if err := w.killLeader(ctx, rng); err != nil {
			return err
		}
		sleep(ctx, between(rng, 500*time.Millisecond, 2*time.Second))
	}
	return nil
}

// happenTo says and counts an event of one process.
func (w *world) happenTo(what string, p *cluster.Process) {
	w.tally.event(what)
	w.say("%s: %s", what, p.Name)
}

// apart says what was lost, waits, and repairs it.
func (w *world) apart(ctx context.Context, what string, p *cluster.Process, lost heal, err error) error {
	if err != nil {
		return err
	}
	w.happenTo(what, p)
	sleep(ctx, w.frozen)
	return lost(ctx)
}

func (w *world) isolate(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		lost, err := w.net.isolate(ctx, p.Name)
		if err := w.apart(ctx, who.what+" is cut off", p, lost, err); err != nil {
			return err
		}
		return w.ready(ctx, p)
	}
}

// splitWorkers leaves the leader with half of the workers.
func (w *world) splitWorkers(ctx context.Context, rng *rand.Rand) error {
	p, err := w.leader(ctx)
	if err != nil {
		return err
	}
	names := []string{p.Name}
	for _, i := range rng.Perm(workers)[:workers/2] {
		names = append(names, w.cluster.Workers()[i].Name)
	}
	lost, err := w.net.part(ctx, names...)
	if err := w.apart(ctx, "the leader is alone with half of the workers", p, lost, err); err != nil {
		return err
	}
	return w.ready(ctx, p)
}

// hide takes a worker from the clients.
func (w *world) hide(ctx context.Context, rng *rand.Rand) error {
	p := w.cluster.Workers()[rng.IntN(workers)]
	lost, err := w.net.hide(ctx, p.Name)
	return w.apart(ctx, "clients do not hear a worker", p, lost, err)
}

func (w *world) dropPackets(ctx context.Context, rng *rand.Rand) error {
	p := w.cluster.Workers()[rng.IntN(workers)]
	lost, err := w.net.drop(ctx, p.Name, "0.05")
	return w.apart(ctx, "a worker loses 5 % of the packets", p, lost, err)
}

// troubleStore lets the under-store fail, or the way there.
func (w *world) troubleStore(ctx context.Context, rng *rand.Rand) error {
	answers := []struct {
		what  string
		fault testenv.Fault
	}{
		{"503", testenv.Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}},
		{"500", testenv.Fault{Status: http.StatusInternalServerError}},
		{"half bodies", testenv.Fault{Cut: 10_000}},
		{"ended connections", testenv.Fault{Disconnect: true}},
		{"slow answers", testenv.Fault{Delay: 500 * time.Millisecond}},
	}
	ways := []struct {
		what  string
		mode  mode
		delay time.Duration
	}{{"slow", pass, 20 * time.Millisecond}, {"held up", hold, 0}, {"cut", cut, 0}, {"a black hole", blackHole, 0}}
	failing := func(what string, begin, end func()) fault {
		return func(ctx context.Context, rng *rand.Rand) error {
			w.happen(what)
			w.storeTrouble.Add(1)
			begin()
			sleep(ctx, between(rng, time.Second, 5*time.Second))
			end()
			w.storeTrouble.Add(1)
			return nil
		}
	}
	var faults []fault
	for _, a := range answers {
		share := 1 + rng.IntN(3) // one in so many requests
		faults = append(faults, failing("the under-store: "+a.what, func() {
			w.proxy.Inject(func(*http.Request, string) testenv.Fault {
				if rand.IntN(share) == 0 {
					return a.fault
				}
				return testenv.Fault{}
			})
		}, func() { w.proxy.Inject(nil) }))
	}
	for _, way := range ways {
		faults = append(faults, failing("the way to the under-store: "+way.what,
			func() { w.link.set(way.mode, way.delay) }, func() { w.link.set(pass, 0) }))
	}
	return w.trouble(ctx, rng, faults)
}

// workerAt returns the worker whose gRPC service is at an address.
func (w *world) workerAt(address string) (*cluster.Process, error) {
	all := w.cluster.Workers()
	i := slices.IndexFunc(all, func(p *cluster.Process) bool { return p.Address("grpc") == address })
	if i < 0 {
		return nil, errors.New("no worker is at " + address)
	}
	return all[i], nil
}
