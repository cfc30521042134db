package cacheworker

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"millrace/api"
	"millrace/block"
)

const (
	// locateShare is which part of the time for a request to another worker the
	// question to a master may take.
	locateShare = 4
	// locatePause is for how long nobody is asked after a master did not
	// answer, or said that there is no other worker.
	locatePause = time.Second
	// locateBatch bounds the blocks of one question.
	locateBatch = 1024
)

// finder is what the worker asks of a master about others.
type finder interface {
	FindBlocks(ctx context.Context, in *api.FindBlocksRequest, opts ...grpc.CallOption) (*api.FindBlocksReply, error)
}

// locator asks the masters who else has blocks. There is one question at a
// time: what is wanted meanwhile goes with the next one, so that many small
// files cost few calls. An answer is a hint, and so is none.
type locator struct {
	masters func() []finder
	self    block.WorkerID
	timeout time.Duration // of one question
	log     *slog.Logger
	turn    chan struct{} // held by who asks

	mu    sync.Mutex
	next  *question
	first int       // of masters, who is asked
	quiet time.Time // nobody is asked before
	epoch uint64    // of the placement when that was decided
}

// question is what is asked of a master at a time.
type question struct {
	hashes []uint64
	named  []string // workers whose addresses are wanted
	done   chan struct{}
	reply  *api.FindBlocksReply // nil if there is none; written before done
}

func newLocator(masters func() []finder, self block.WorkerID, timeout time.Duration, log *slog.Logger) *locator {
	return &locator{masters: masters, self: self, timeout: timeout, log: log, turn: make(chan struct{}, 1)}
}

// find returns live workers that should have all of a block, without owner; and
// that one, unless it is "" or not alive. epoch is that of the placement: a new
// one may be a new worker's.
func (l *locator) find(ctx context.Context, k block.Key, epoch uint64, owner block.WorkerID) (found []*api.Holder, owning *api.Holder) {
	q, at, mine := l.join(k.LocationHash(), epoch, owner)
	switch {
	case q == nil:
		return nil, nil
	case mine:
		l.ask(ctx, q, epoch)
	default:
		select {
		case <-q.done:
		case <-ctx.Done():
			return nil, nil
		}
	}
	if owner != "" {
		if i := slices.IndexFunc(q.reply.GetWorkers(), func(h *api.Holder) bool { return h.GetId() == string(owner) }); i >= 0 {
			owning = q.reply.GetWorkers()[i]
		}
	}
	if at >= len(q.reply.GetBlocks()) {
		return nil, owning
	}
	for _, i := range q.reply.GetBlocks()[at].GetWorkers() {
		if int(i) < len(q.reply.GetWorkers()) && q.reply.GetWorkers()[i] != owning {
			found = append(found, q.reply.GetWorkers()[i])
		}
	}
	return found, owning
}

// join enters a block in the next question. mine is true for who is to ask it.
func (l *locator) join(hash, epoch uint64, owner block.WorkerID) (q *question, at int, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch == l.epoch && time.Now().Before(l.quiet) {
		return nil, 0, false
	}
	if l.next == nil || len(l.next.hashes) == locateBatch {
		l.next, mine = &question{done: make(chan struct{})}, true
	}
	l.next.hashes = append(l.next.hashes, hash)
	if owner != "" && !slices.Contains(l.next.named, string(owner)) {
		l.next.named = append(l.next.named, string(owner))
	}
	return l.next, len(l.next.hashes) - 1, mine
}

// ask waits for its turn and asks q.
func (l *locator) ask(ctx context.Context, q *question, epoch uint64) {
	defer close(q.done)
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
	}
	l.mu.Lock()
	if l.next == q {
		l.next = nil // it is complete
	}
	first := l.first
	l.mu.Unlock()
	masters := l.masters()
	if len(masters) == 0 {
		return
	}
	master := masters[first%len(masters)]
	within, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	reply, err := master.FindBlocks(within, &api.FindBlocksRequest{WorkerId: string(l.self), Blocks: q.hashes, Named: q.named})
	if ctx.Err() != nil {
		return // which says nothing about the master
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.log.Debug("asking who has blocks", "err", err)
		l.first++
	}
	if err != nil || reply.GetOthers() == 0 {
		l.quiet, l.epoch = time.Now().Add(locatePause), epoch
		return
	}
	q.reply = reply
}
