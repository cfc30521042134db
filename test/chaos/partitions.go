package main

import (
	"context"
	"math/rand/v2"

	"millrace/test/cluster"
	"millrace/test/hosts"
	"millrace/test/trial"
)

// apart says what was lost, waits, and repairs it.
func (w *world) apart(ctx context.Context, what string, p *cluster.Process, lost hosts.Heal, err error) error {
	if err != nil {
		return err
	}
	w.log.HappenTo(p.Name, what)
	trial.Sleep(ctx, w.frozen)
	return lost(ctx)
}

func (w *world) isolate(who choice) fault {
	return func(ctx context.Context, rng *rand.Rand) error {
		p, err := who.pick(ctx, rng)
		if err != nil {
			return err
		}
		lost, err := w.net.Isolate(ctx, p.Name)
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
	lost, err := w.net.Part(ctx, names...)
	if err := w.apart(ctx, "the leader is alone with half of the workers", p, lost, err); err != nil {
		return err
	}
	return w.ready(ctx, p)
}

// hide takes a worker from the clients.
func (w *world) hide(ctx context.Context, rng *rand.Rand) error {
	p := w.cluster.Workers()[rng.IntN(workers)]
	lost, err := w.net.Hide(ctx, p.Name)
	return w.apart(ctx, "clients do not hear a worker", p, lost, err)
}

func (w *world) dropPackets(ctx context.Context, rng *rand.Rand) error {
	p := w.cluster.Workers()[rng.IntN(workers)]
	lost, err := w.net.Drop(ctx, p.Name, 20)
	return w.apart(ctx, "a worker loses 5 % of the packets", p, lost, err)
}
