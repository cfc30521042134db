package cluster

import (
	"context"
	"errors"
	"testing"

	"millrace/test/hosts"
)

// TestPartitions parts the network in every way under load, in which changes
// and reads go on and see no error, and heals it again.
func TestPartitions(t *testing.T) {
	c, n := prepareOnHosts(t, 3, 4, nil)
	must(t, c.Start(bounded(t)))
	l := newLoad(t, c, c.source(t, 8, 300<<10), stores(t))
	l.more(20, 5)
	workers := c.Workers()
	for _, tc := range []struct {
		name string
		lose func(ctx context.Context, leader string) (hosts.Heal, error)
		// deposed: another master leads then.
		deposed bool
	}{
		{"the leader alone", n.Isolate, true},
		{"the leader with half of the workers", func(ctx context.Context, leader string) (hosts.Heal, error) {
			return n.Part(ctx, leader, workers[0].Name, workers[1].Name)
		}, true},
		{"clients from one worker", func(ctx context.Context, _ string) (hosts.Heal, error) {
			return n.Hide(ctx, workers[2].Name)
		}, false},
		{"one of ten packets to a worker", func(ctx context.Context, _ string) (hosts.Heal, error) {
			return n.Drop(ctx, workers[3].Name, 10)
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leader := c.leader(t)
			heal, err := tc.lose(t.Context(), leader.Name)
			must(t, err)
			if tc.deposed {
				must(t, Until(bounded(t), func() error {
					for _, m := range c.Followers(leader) {
						if m.Leads(t.Context()) {
							return nil
						}
					}
					return errors.New("no other master leads")
				}))
			}
			l.more(40, 10)
			must(t, heal(t.Context()))
			for _, p := range append(c.Masters(), workers...) {
				must(t, p.Ready(bounded(t)))
			}
			l.more(20, 5)
		})
	}
	l.check(c)
}
