package tier

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// adviser says which units of a directory are worth their room. It works
// behind the scenes and may be late, forget what it was told, and name units
// that cannot be given up: what it says is advice. Its methods are called by
// one goroutine, but for hit.
type adviser interface {
	// admit tells of a unit that takes so many bytes. false: it did not
	// listen, and may be told again.
	admit(u *unit, bytes int64) bool
	// hit tells of an access. It is on the way of a read, and never waits.
	hit(u *unit)
	// forget tells that a unit is gone.
	forget(u *unit)
	// knows reports whether the adviser still counts on a unit.
	knows(u *unit) bool
	// resize tells how many bytes there are for all.
	resize(bytes int64)
	close()
}

// makeAdviser starts an adviser that calls victim with each unit that it would
// give up; victim never waits.
type makeAdviser func(bytes int64, victim func(*unit)) (adviser, error)

const (
	// adviceShare is the share of a directory that its adviser is told of: it
	// names victims before the directory is full, since nobody waits for it.
	adviceShare = 0.9
	// maxAdvice bounds the victims that are remembered, and the events that
	// the adviser is behind by; what is more is lost, and found by a sweep.
	maxAdvice = 1 << 14
	// sweepUnits is how many units are looked at each sweepInterval.
	sweepUnits    = 1 << 14
	sweepInterval = time.Second
	seedPause     = 10 * time.Millisecond
)

// advised is the policy of memory: paced's order, before which comes what an
// adviser would give up. Nothing waits for the adviser: events go to it by a
// bounded channel and are lost when that is full, its advice comes into a
// bounded list, and where there is none paced decides. A victim that is
// refused, as somebody has it open, stays in the directory and the ledger
// although the adviser has struck it off; a sweep finds it, as it finds what
// was lost on the way, and makes it the first victim.
type advised struct {
	paced

	make   makeAdviser
	limit  func() int64
	log    *slog.Logger
	events chan adviceEvent

	guard   sync.RWMutex // keeps hits away from an adviser that is closed
	adviser adviser      // nil while none runs

	listsMu sync.Mutex
	lost    unitQueue // found by the sweep: the first victims
	named   unitQueue // by the adviser
}

type adviceEvent struct {
	u    *unit
	gone bool
}

// unitQueue is a bounded queue.
type unitQueue struct{ list []*unit }

func (q *unitQueue) push(u *unit) bool {
	if len(q.list) >= maxAdvice {
		return false
	}
	q.list = append(q.list, u)
	return true
}

func (q *unitQueue) pop() *unit {
	if len(q.list) == 0 {
		return nil
	}
	u := q.list[0]
	q.list[0] = nil
	if q.list = q.list[1:]; len(q.list) == 0 {
		q.list = nil
	}
	return u
}

// newAdvised makes the policy; run starts the adviser. limit returns the bytes
// that the directory may take.
func newAdvised(mk makeAdviser, limit func() int64, log *slog.Logger) *advised {
	return &advised{make: mk, limit: limit, log: log, events: make(chan adviceEvent, maxAdvice)}
}

func (a *advised) add(u *unit) {
	if u.state.Load()&unitQueued != 0 {
		return
	}
	a.paced.add(u)
	a.tell(u, false)
}

func (a *advised) remove(u *unit) {
	a.paced.remove(u)
	a.tell(u, true)
}

func (a *advised) touch(u *unit) {
	a.paced.touch(u)
	if !a.guard.TryRLock() {
		return
	}
	defer a.guard.RUnlock()
	if a.adviser != nil {
		a.adviser.hit(u)
	}
}

// tell passes an event on, if there is room for it.
func (a *advised) tell(u *unit, gone bool) {
	select {
	case a.events <- adviceEvent{u, gone}:
	default:
	}
}

// victim returns what was lost, then what the adviser named, then what paced
// says. What was hit since it was named gets another chance.
func (a *advised) victim() *unit {
	for {
		u := a.next()
		switch {
		case u == nil:
			return a.paced.victim()
		case u.state.Load()&unitQueued == 0 || u.pins.Load() > 0:
		case u.state.Load()&unitVisited != 0:
			a.tell(u, false)
		default:
			return u
		}
	}
}

func (a *advised) next() *unit {
	a.listsMu.Lock()
	defer a.listsMu.Unlock()
	u := a.lost.pop()
	if u == nil {
		u = a.named.pop()
	}
	if u != nil {
		u.state.And(^(unitNamed | unitMissed))
	}
	return u
}

// name takes advice in. The adviser calls it; it never waits.
func (a *advised) name(u *unit) {
	a.listsMu.Lock()
	defer a.listsMu.Unlock()
	if u.state.Load()&(unitQueued|unitNamed) == unitQueued && a.named.push(u) {
		u.state.Or(unitNamed)
		u.state.And(^unitVisited) // a hit from now on is a reason to keep it
	}
}

// run starts the adviser, tells it what the directory has, and keeps it told
// until ctx ends.
func (a *advised) run(ctx context.Context) {
	ad, err := a.make(a.size(), a.name)
	if err != nil {
		a.log.Warn("memory is evicted in the order of arrival: its adviser does not start", slog.Any("error", err))
		return
	}
	a.set(ad)
	defer ad.close()
	defer a.set(nil)
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	if !a.seed(ctx, ad) {
		return
	}
	var rest []*unit // of this pass over all units
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-a.events:
			if e.gone {
				ad.forget(e.u)
			} else if e.u.state.Load()&unitQueued != 0 {
				ad.admit(e.u, e.u.size()) // if it does not listen, the sweep finds that
			}
		case <-tick.C:
			ad.resize(a.size())
			if len(rest) == 0 {
				rest = a.units()
			}
			n := min(len(rest), sweepUnits)
			a.sweep(ad, rest[:n])
			rest = rest[n:]
		}
	}
}

func (a *advised) size() int64 { return int64(adviceShare * float64(a.limit())) }

func (a *advised) set(ad adviser) {
	a.guard.Lock()
	a.adviser = ad
	a.guard.Unlock()
}

// seed tells of what was there before the adviser, as fast as it listens.
func (a *advised) seed(ctx context.Context, ad adviser) bool {
	for _, u := range a.units() {
		for !ad.admit(u, u.size()) {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(seedPause):
			}
		}
	}
	return ctx.Err() == nil
}

// sweep makes first victims of the units that the adviser does not know, this
// time and the last time: what it was told just now it may not have read yet.
func (a *advised) sweep(ad adviser, units []*unit) {
	for _, u := range units {
		state := u.state.Load()
		switch {
		case state&unitQueued == 0 || state&unitNamed != 0:
		case ad.knows(u):
			u.state.And(^unitMissed)
		case state&unitMissed == 0:
			u.state.Or(unitMissed)
		default:
			a.listsMu.Lock()
			if a.lost.push(u) {
				u.state.Or(unitNamed)
				u.state.And(^unitVisited)
			}
			a.listsMu.Unlock()
		}
	}
}
