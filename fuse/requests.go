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
type requests struct {
	// begin makes a context that ends with the mount.
	begin   func() (context.Context, context.CancelFunc)
	workers sync.WaitGroup
}

const doomedEvery = 100 * time.Millisecond

// context returns the context of a request. done must be called when the
// request is over.
func (r *requests) context(interrupt <-chan struct{}, pid uint32) (ctx context.Context, done func()) {
	ctx, cancel := r.begin()
	r.workers.Go(func() {
		select {
		case <-ctx.Done():
		case <-interrupt:
			awaitDeath(ctx, pid)
			cancel()
		}
	})
	return ctx, cancel
}

// awaitDeath returns when the process has been killed or ctx has ended.
func awaitDeath(ctx context.Context, pid uint32) {
	ticker := time.NewTicker(doomedEvery)
	defer ticker.Stop()
	for !doomed(pid) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
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
