package fsm

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

// TestWorkers follows the placement through joins, drains and departures.
func TestWorkers(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	join := func(id string, capacity, smallest int64) Command {
		return Command{RegisterWorker: &RegisterWorker{Worker: Worker{ID: id, CapacityBytes: capacity, SmallestDirBytes: smallest}}}
	}
	drain := func(id string, on bool) Command {
		return Command{DrainWorker: &DrainWorker{ID: id, Draining: on}}
	}
	forget := func(id string) Command { return Command{ForgetWorker: &ForgetWorker{ID: id}} }
	for i, step := range []struct {
		what   string
		c      Command
		err    error
		epoch  uint64
		limit  int64
		owners []block.WorkerID
	}{
		{"join", join("a", 100, 80), nil, 1, 10, []block.WorkerID{"a"}},
		{"the last one stays", drain("a", true), errs.Invalid, 1, 10, []block.WorkerID{"a"}},
		{"join", join("b", 100, 40), nil, 2, 5, []block.WorkerID{"a", "b"}},
		{"join without room", join("c", 0, 0), nil, 3, 5, []block.WorkerID{"a", "b", "c"}},
		{"drain", drain("b", true), nil, 4, 10, []block.WorkerID{"a", "c"}},
		{"drain again", drain("b", true), nil, 4, 10, []block.WorkerID{"a", "c"}},
		{"one without room does not count", drain("a", true), errs.Invalid, 4, 10, []block.WorkerID{"a", "c"}},
		{"a restart does not end a drain", join("b", 100, 40), nil, 4, 10, []block.WorkerID{"a", "c"}},
		{"nor does a larger disk", join("b", 200, 40), nil, 4, 10, []block.WorkerID{"a", "c"}},
		{"undrain", drain("b", false), nil, 5, 5, []block.WorkerID{"a", "b", "c"}},
		{"drain who is unknown", drain("x", true), errs.NotFound, 5, 5, []block.WorkerID{"a", "b", "c"}},
		{"forget", forget("a"), nil, 6, 5, []block.WorkerID{"b", "c"}},
		{"forget who is unknown", forget("a"), errs.NotFound, 6, 5, []block.WorkerID{"b", "c"}},
		{"join", join("a", 100, 80), nil, 7, 5, []block.WorkerID{"a", "b", "c"}},
		{"drain", drain("a", true), nil, 8, 5, []block.WorkerID{"b", "c"}},
		{"forget who drains", forget("a"), nil, 8, 5, []block.WorkerID{"b", "c"}},
		{"it comes back as one that owns", join("a", 100, 80), nil, 9, 5, []block.WorkerID{"a", "b", "c"}},
	} {
		r, ok := s.Apply(entries(t, uint64(i+1), step.c)[0]).(Result)
		if !ok || !errors.Is(r.Err, step.err) || (step.err == nil && r.Err != nil) {
			t.Fatalf("step %d, %s: %v", i, step.what, r.Err)
		}
		p := s.State().Placement()
		var owners []block.WorkerID
		for _, w := range p.Workers {
			owners = append(owners, w.ID)
		}
		if d := cmp.Diff(step.owners, owners); d != "" || p.Epoch != step.epoch || p.WholeFileLimit != step.limit {
			t.Errorf("step %d, %s: epoch %d, limit %d, owners (-want +got)\n%s", i, step.what, p.Epoch, p.WholeFileLimit, d)
		}
	}
}
