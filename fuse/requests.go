package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// requests gives each request of the kernel that may take time its context.
//
// The kernel interrupts a request when its process gets any signal, also one
// that the program handles, and does not say which. Answering EINTR then
// would surprise programs (a read of a regular file is not expected to fail
// on SIGCHLD or a timer) and kill those that map files (an interrupted page
// fault is SIGBUS). So an interrupted request goes on until the process is
// about to die, as NFS does.
//
// One goroutine looks after the requests that take longer than a moment, so
// that the others cost neither a goroutine nor memory.
type requests struct {
	life    context.Context //nolint:containedctx // of the mount; its end is the end of every request
	workers sync.WaitGroup
	pool    sync.Pool
	wake    chan struct{}

	mu       sync.Mutex
	first    *request // of those under way
	watching bool     // or about to
}

// doomedEvery is how often the requests under way are looked after.
const doomedEvery = 100 * time.Millisecond

// newRequests returns the requests of a mount that lives as long as ctx. run
// must be called once, and returns when ctx has ended.
func newRequests(ctx context.Context) *requests {
	return &requests{life: ctx, wake: make(chan struct{}, 1)}
}

// begin makes a context of its own for what outlives a request.
func (r *requests) begin() (context.Context, context.CancelFunc) {
	return context.WithCancel(r.life)
}

// context returns the context of a request. Its end must be called when the
// request is over, after which nobody may use it.
func (r *requests) context(interrupt <-chan struct{}, pid uint32) *request {
	q, ok := r.pool.Get().(*request)
	if !ok {
		q = &request{of: r, done: make(chan struct{})}
		q.forgetFirst = func() bool { return q.unhook(0) }
	}
	q.interrupt, q.pid = interrupt, pid
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.next = r.first; q.next != nil {
		q.next.prev = q
	}
	r.first = q
	if err := r.life.Err(); err != nil {
		q.cancel(err)
		return q
	}
	if !r.watching {
		r.watching = true
		r.wake <- struct{}{} // has room: it is received before watching ends
	}
	return q
}

// run looks after the requests until the mount ends.
func (r *requests) run() {
	ticker := time.NewTicker(doomedEvery)
	ticker.Stop()
	defer ticker.Stop()
	for {
		select {
		case <-r.life.Done():
			r.cancelAll(r.life.Err())
			return
		case <-r.wake:
			ticker.Reset(doomedEvery)
		case <-ticker.C:
			if !r.look() {
				ticker.Stop()
			}
		}
	}
}

func (r *requests) cancelAll(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q := r.first; q != nil; q = q.next {
		q.cancel(err)
	}
}

// look ends the requests of processes that were killed. It reports false when
// none is under way.
func (r *requests) look() bool {
	type suspect struct {
		q   *request
		use uint64
		pid uint32
	}
	var list []suspect
	r.mu.Lock()
	if r.first == nil {
		r.watching = false
		r.mu.Unlock()
		return false
	}
	for q := r.first; q != nil; q = q.next {
		select {
		case <-q.interrupt:
			list = append(list, suspect{q, q.use, q.pid})
		default:
		}
	}
	r.mu.Unlock()
	for _, s := range list {
		if !doomed(s.pid) {
			continue
		}
		r.mu.Lock()
		if s.q.use == s.use {
			s.q.cancel(context.Canceled)
		}
		r.mu.Unlock()
	}
	return true
}

// request is the context of one request of the kernel. It is used again for
// another, unless it was canceled.
type request struct {
	of *requests

	// Guarded by of.mu.
	interrupt  <-chan struct{} // closed by the kernel's INTERRUPT
	pid        uint32
	use        uint64 // counts the requests that this was the context of
	prev, next *request

	forgetFirst func() bool // unhook(0), made once

	mu    sync.Mutex
	done  chan struct{}
	err   error
	hooks []func() // nil where one was taken back
}

// Deadline implements context.Context: the client sets deadlines.
func (*request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (*request) Value(any) any { return nil }

// Done implements context.Context.
func (q *request) Done() <-chan struct{} { return q.done }

// Err implements context.Context.
func (q *request) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// AfterFunc calls f in a goroutine of its own when the request is canceled,
// unless stop is called first, as context.AfterFunc does; package context
// uses it for what is derived from this one.
func (q *request) AfterFunc(f func()) (stop func() bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		q.of.workers.Go(f)
		return func() bool { return false }
	}
	for i := range q.hooks {
		if q.hooks[i] == nil {
			q.hooks[i] = f
			return q.stopper(i)
		}
	}
	q.hooks = append(q.hooks, f)
	return q.stopper(len(q.hooks) - 1)
}

func (q *request) stopper(i int) func() bool {
	if i == 0 {
		return q.forgetFirst
	}
	return func() bool { return q.unhook(i) }
}

// unhook takes a hook back; it reports false if the hook was called.
func (q *request) unhook(i int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || i >= len(q.hooks) || q.hooks[i] == nil {
		return false
	}
	q.hooks[i] = nil
	return true
}

func (q *request) cancel(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return
	}
	q.err = err
	close(q.done)
	for _, f := range q.hooks {
		if f != nil {
			q.of.workers.Go(f)
		}
	}
	q.hooks = nil
}

// end says that the request is over.
func (q *request) end() {
	r := q.of
	r.mu.Lock()
	if q.prev != nil {
		q.prev.next = q.next
	} else {
		r.first = q.next
	}
	if q.next != nil {
		q.next.prev = q.prev
	}
	q.prev, q.next, q.interrupt = nil, nil, nil
	q.use++
	r.mu.Unlock()
	q.mu.Lock()
	clean := q.err == nil
	for _, f := range q.hooks {
		clean = clean && f == nil // else something still stands on this context
	}
	q.mu.Unlock()
	if clean {
		r.pool.Put(q)
		return
	}
	q.cancel(context.Canceled)
}

// doomed reports whether a thread is gone or has been sent SIGKILL, which is
// what every fatal signal becomes. 0 is a process that this one cannot see.
func doomed(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return statusDoomed(status)
}

const sigkillBit = 1 << 8 // signal 9

func statusDoomed(status []byte) bool {
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			if set, err := strconv.ParseUint(value, 16, 64); err == nil && set&sigkillBit != 0 {
				return true
			}
		}
	}
	return false
}

// handles are the open files or directories of a mount; the kernel bounds
// them by its limits on open descriptors.
type handles[T any] struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]T
}

func (h *handles[T]) add(v T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = make(map[uint64]T)
	}
	h.last++
	h.open[h.last] = v
	return h.last
}

func (h *handles[T]) get(id uint64) (v T, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok = h.open[id]
	return v, ok
}

func (h *handles[T]) remove(id uint64) (v T, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok = h.open[id]
	delete(h.open, id)
	return v, ok
}

// drain removes and returns all.
func (h *handles[T]) drain() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]T, 0, len(h.open))
	for _, v := range h.open {
		all = append(all, v)
	}
	clear(h.open)
	return all
}

func (h *handles[T]) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.open)
}
