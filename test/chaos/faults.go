package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"millrace/test/cluster"
	"millrace/test/trial"
)

// fault is one bad thing. It returns when all is repaired.
type fault func(ctx context.Context, rng *rand.Rand) error

// trouble lets one fault happen after the other until ctx ends. What is begun
// is finished, also when the time is over.
func (w *world) trouble(ctx context.Context, rng *rand.Rand, faults []fault) error {
	for trial.Sleep(ctx, trial.Between(rng, 500*time.Millisecond, 4*time.Second)) {
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

// quietly is a fault that happens while nothing else is wrong. Its group is
// about to let it happen.
func (w *world) quietly(f fault) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		w.calm.RUnlock()
		defer w.calm.RLock()
		w.calm.Lock()
		defer w.calm.Unlock()
		return f(ctx, rng)
	}
}

func (w *world) troubleMasters(ctx context.Context, rng *rand.Rand) error {
	leader := choice{"the leader", func(ctx context.Context, _ *rand.Rand) (*cluster.Process, error) { return w.leader(ctx) }}
	random := choice{"a master", func(_ context.Context, rng *rand.Rand) (*cluster.Process, error) {
		return w.cluster.Masters()[rng.IntN(masters)], nil
	}}
	faults := []fault{
		w.killLeader, w.killLeader, w.kill(random), w.pause(leader), w.pause(random), w.restart(leader), w.restart(random),
		w.wipeMaster,
	}
	if w.net != nil {
		faults = append(faults, w.isolate(leader), w.isolate(random), w.splitWorkers)
	}
	if w.images != nil {
		faults = append(faults, w.cutPower(w.cluster.Masters()[masters-1]))
	}
	if w.traceable {
		faults = append(faults, w.failLeadersDisk)
	}
	return w.trouble(ctx, rng, faults)
}

func (w *world) troubleWorkers(ctx context.Context, rng *rand.Rand) error {
	random := choice{"a worker", func(_ context.Context, rng *rand.Rand) (*cluster.Process, error) {
		return w.cluster.Workers()[rng.IntN(workers)], nil
	}}
	faults := []fault{w.kill(random), w.kill(random), w.pause(random), w.restart(random), w.wipeWorker}
	if w.net != nil {
		faults = append(faults, w.isolate(random), w.hide)
		if w.lossy {
			faults = append(faults, w.dropPackets)
		}
	}
	if w.images != nil {
		faults = append(faults, w.cutPower(w.cluster.Workers()[1]))
	}
	if w.traceable {
		faults = append(faults, w.failWorkersDisk)
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
	if err := p.Start(); err != nil {
		return err
	}
	return w.ready(ctx, p)
}

func (w *world) kill(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		w.log.HappenTo(p.Name, "kill -9 "+who.what)
		p.Kill()
		trial.Sleep(ctx, trial.Between(rng, 0, 5*time.Second))
		return w.begin(ctx, p)
	}
}

func (w *world) restart(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		w.log.HappenTo(p.Name, "restart "+who.what)
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
		w.log.HappenTo(p.Name, "SIGSTOP "+who.what)
		if err := p.Pause(); err != nil {
			return err
		}
		trial.Sleep(ctx, w.frozen)
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
	if _, err := w.admin.AddUFS(ctx, path, w.empty[0], nil); err != nil {
		return fmt.Errorf("a change after the leader was killed: %w", err)
	}
	took := time.Since(began)
	w.tally.failOver(took)
	w.log.HappenTo(p.Name, "kill -9 the leader")
	w.log.Say("the next change took %v", took.Round(time.Millisecond))
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
		trial.Sleep(ctx, trial.Between(rng, 500*time.Millisecond, 2*time.Second))
	}
	return nil
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
