package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// Members returns the masters' states by their names, as `masters ls` shows
// them.
func (c *Cluster) Members(ctx context.Context) (map[string]string, error) {
	out, err := c.Run(ctx, "masters", "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, m := range list {
		states[m.ID] = m.State
	}
	return states, nil
}

// Rejoin makes a master that lost its disk, and was started again, a member
// once more, as an operator does: it is removed and added again. It returns when
// the master has caught up.
func (c *Cluster) Rejoin(ctx context.Context, p *Process) error {
	lost := false
	err := Until(ctx, func() error {
		states, err := c.Members(ctx)
		if err != nil {
			return err
		}
		state := states[p.Name]
		switch state {
		case "empty":
			lost = true
			_, err = c.Run(ctx, "masters", "remove", p.Name)
		case "waiting":
			lost = true
			_, err = c.Run(ctx, "masters", "add", p.Name)
		case "follower", "leader":
			if lost {
				return nil
			}
		}
		if err == nil {
			err = fmt.Errorf("%s is %s still", p.Name, state)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("join with an empty disk: %w", err)
	}
	return p.Ready(ctx)
}

// WorkerState is a worker as `workers ls` shows it.
type WorkerState struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	State   string `json:"state"`
}

// WorkerStates returns all workers that are registered.
func (c *Cluster) WorkerStates(ctx context.Context) ([]WorkerState, error) {
	out, err := c.Run(ctx, "workers", "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []WorkerState
	return all, json.Unmarshal([]byte(out), &all)
}

// Worker returns what `workers ls` shows of a process: the youngest, should it
// have been others before.
func (c *Cluster) Worker(ctx context.Context, p *Process) (youngest WorkerState, err error) {
	all, err := c.WorkerStates(ctx)
	for _, w := range all {
		if w.Address == p.Address("grpc") && w.ID > youngest.ID { // IDs sort by time
			youngest = w
		}
	}
	return youngest, err
}

// Replace makes a worker with an empty disk of one whose process has ended: a
// new one to the masters, which forget the old one.
func (c *Cluster) Replace(ctx context.Context, p *Process) error {
	old, err := c.Worker(ctx, p)
	if err != nil {
		return err
	}
	if err := p.Wipe(); err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	if err := p.Ready(ctx); err != nil {
		return err
	}
	return Until(ctx, func() error {
		all, err := c.WorkerStates(ctx)
		if err != nil || !slices.ContainsFunc(all, func(w WorkerState) bool { return w.ID == old.ID }) {
			return err
		}
		if _, err = c.Run(ctx, "workers", "forget", old.ID); err == nil { // as soon as it is suspect
			err = fmt.Errorf("%s is %s still", p.Name, old.ID)
		}
		return err
	})
}

// DisksServe waits until all cache directories of a worker are in service.
func (c *Cluster) DisksServe(ctx context.Context, p *Process) error {
	want := 1.0
	if c.cfg.Memory != "" {
		want++
	}
	return p.Until(ctx, func() error {
		up, err := p.Metric(ctx, "millrace_tier_directory_up")
		if err == nil && up != want {
			err = fmt.Errorf("%v cache directories of %v are in service", up, want)
		}
		return err
	})
}
