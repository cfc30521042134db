package client

import (
	"context"
	"time"

	"millrace/block"
	"millrace/blockio"
)

// A descriptor that nobody uses is kept for the next one who reads the file,
// which saves asking the worker anew. As long as it is open the worker cannot
// give the file's room to others, and it may be one that the worker would not
// hand out any more. So each second the workers are asked what they want back:
// that is closed when nobody uses it, and given to nobody else.

const (
	// touchEvery is how long uses of descriptors are gathered before the
	// workers hear of them, and are asked what they recall; a descriptor in use
	// counts anew each heldEvery.
	touchEvery   = time.Second
	heldEvery    = time.Minute
	touchTimeout = 2 * time.Second
	// answerHolds is how long a worker's answer is believed.
	answerHolds = 10 * time.Second
	// descriptorIdle is how long a descriptor that nobody uses stays open
	// whose worker does not say what it recalls, and descriptorKept how long
	// one is given to new users.
	descriptorIdle = 5 * time.Second
	descriptorKept = time.Minute
)

// keeper is what a worker says about the descriptors that it handed out. All
// of it is guarded by descriptors.mu.
type keeper struct {
	id       block.WorkerID
	files    int           // descriptors of it that are to be found
	position uint64        // of its recalls, from which it is to be asked
	answered time.Time     // zero before its first answer
	idle     time.Duration // how long it lets descriptors stay that nobody uses
}

// keeperOf returns the keeper of a worker's descriptors. The caller holds s.mu.
func (s *descriptors) keeperOf(id block.WorkerID) *keeper {
	k := s.keepers[id]
	if k == nil {
		k = &keeper{id: id}
		s.keepers[id] = k
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return k
}

// answers reports whether it is known what the worker recalls.
func (k *keeper) answers(now time.Time) bool { return now.Sub(k.answered) < answerHolds }

// holds reports whether a descriptor that nobody uses may be given to somebody.
func (k *keeper) holds(f *sharedFile, now time.Time) bool {
	return k.answers(now) || now.Sub(f.came) < descriptorKept
}

// allowance is how long descriptors that nobody uses may stay open.
func (k *keeper) allowance(now time.Time) time.Duration {
	if k.answers(now) {
		return k.idle
	}
	return descriptorIdle
}

// run closes what nobody is to keep, and tells the workers what was used, until
// ctx ends.
func (s *descriptors) run(ctx context.Context, w *workers) {
	if s.limit == 0 {
		return
	}
	ticker := time.NewTicker(touchEvery)
	defer ticker.Stop()
	held := time.Now()
	for {
		select {
		case now := <-ticker.C:
			again := now.Sub(held) >= heldEvery
			if again {
				held = now
			}
			s.tell(ctx, w, s.gather(again))
			s.askRecalls(ctx, w)
			s.endLoans(s.clock.now())
			s.closeIdle(time.Now())
		case <-s.wake: // what is handed out before the first answer cannot be kept
			s.askRecalls(ctx, w)
		case <-ctx.Done():
			return
		}
	}
}

// gather returns the uses since the last time, by worker. With held,
// descriptors in use count once more.
func (s *descriptors) gather(held bool) map[block.WorkerID][]blockio.Touch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held {
		for _, f := range s.files {
			if f.users > 0 {
				s.touch(f)
			}
		}
	}
	if len(s.touches) == 0 {
		return nil
	}
	all := make(map[block.WorkerID][]blockio.Touch)
	for id, t := range s.touches {
		all[t.worker] = append(all[t.worker], blockio.Touch{FileID: id, Count: t.count})
	}
	clear(s.touches)
	return all
}

// tell sends notices. One that does not arrive is lost: it is a hint.
func (s *descriptors) tell(ctx context.Context, w *workers, all map[block.WorkerID][]blockio.Touch) {
	for id, touches := range all {
		within, cancel := context.WithTimeout(ctx, touchTimeout)
		if err := w.touch(within, id, touches); err != nil {
			s.log.Debug("tell a worker which cached files were read", "worker", string(id), "error", err)
		}
		cancel()
	}
}

// askRecalls asks all workers that handed out what is kept.
func (s *descriptors) askRecalls(ctx context.Context, w *workers) {
	for _, q := range s.toAsk() {
		now := time.Now()
		within, cancel := context.WithTimeout(ctx, touchTimeout)
		v, err := w.recalls(within, q.id, q.position)
		cancel()
		if err != nil {
			s.log.Debug("ask a worker which descriptors it wants back", "worker", string(q.id), "error", err)
			continue
		}
		s.heard(q.id, v, now)
	}
}

// toAsk returns the workers to ask, and forgets those that have nothing out.
func (s *descriptors) toAsk() []keeper {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []keeper
	for id, k := range s.keepers {
		if k.files > 0 {
			all = append(all, *k)
		} else if !k.answers(time.Now()) {
			delete(s.keepers, id)
		}
	}
	return all
}

// heard does what a worker said when it was asked at that time.
func (s *descriptors) heard(id block.WorkerID, v blockio.Recalls, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keepers[id]
	if k == nil {
		return
	}
	k.position, k.answered, k.idle = v.Position, asked, v.Idle
	if v.Idle == 0 {
		k.idle = blockio.AnyTime // of what comes from now on
		for _, f := range s.files {
			s.recall(f, k)
		}
	}
	for _, id := range v.Files {
		if f := s.files[id]; f != nil {
			s.recall(f, k)
		}
	}
	if v.Idle == 0 || len(v.Files) > 0 {
		s.rounds.Add(1) // what is on its way may be meant too
	}
}

// recall gives a descriptor of that worker back, at once if nobody uses it. The
// caller holds s.mu.
func (s *descriptors) recall(f *sharedFile, k *keeper) {
	switch {
	case f.keeper != k:
	case f.users > 0:
		f.recalled = true
	default:
		s.forget(f)
	}
}

// closeIdle closes what nobody has used for as long as its worker allows.
func (s *descriptors) closeIdle(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := blockio.AnyTime
	for _, k := range s.keepers {
		least = min(least, k.allowance(now))
	}
	for f := s.idle.prev; f != &s.idle && now.Sub(f.idleAt) >= least; {
		newer := f.prev
		if now.Sub(f.idleAt) >= f.keeper.allowance(now) {
			s.forget(f)
		}
		f = newer
	}
}
