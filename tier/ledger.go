package tier

import "sync"

// ledger is the authority on the room that a directory takes: what is not
// reserved here is not written. All amounts are rounded to the file system's
// blocks by the callers.
type ledger struct {
	mu         sync.Mutex
	limit      int64 // bytes that may be charged now: capacity, or less when the file system is full
	used       int64 // bytes charged, reserved ones included
	reserved   int64 // of used: not written yet
	held       int64 // of used: files out of the cache, not yet proven free
	inodeLimit int64
	inodes     int64
}

// reserve charges both amounts, or neither if one is over its limit.
func (l *ledger) reserve(bytes, inodes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used+bytes > l.limit || l.inodes+inodes > l.inodeLimit && inodes > 0 {
		return false
	}
	l.used += bytes
	l.reserved += bytes
	l.inodes += inodes
	return true
}

// written says that reserved bytes are on the disk now.
func (l *ledger) written(bytes int64) {
	l.mu.Lock()
	l.reserved -= bytes
	l.mu.Unlock()
}

// cancel gives back what was reserved and not written.
func (l *ledger) cancel(bytes, inodes int64) {
	l.mu.Lock()
	l.reserved -= bytes
	l.used -= bytes
	l.inodes -= inodes
	l.mu.Unlock()
}

// add charges what is on the disk already, and may pass the limit.
func (l *ledger) add(bytes, inodes int64) {
	l.mu.Lock()
	l.used += bytes
	l.inodes += inodes
	l.mu.Unlock()
}

// free gives back what was on the disk.
func (l *ledger) free(bytes, inodes int64) { l.add(-bytes, -inodes) }

// hold moves charged bytes to those held; a negative amount moves them back.
func (l *ledger) hold(bytes int64) {
	l.mu.Lock()
	l.held += bytes
	l.mu.Unlock()
}

func (l *ledger) setLimit(bytes, inodes int64) {
	l.mu.Lock()
	l.limit, l.inodeLimit = bytes, inodes
	l.mu.Unlock()
}

type ledgerState struct{ limit, used, reserved, held, inodes int64 }

func (l *ledger) state() ledgerState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ledgerState{l.limit, l.used, l.reserved, l.held, l.inodes}
}

// roundUp rounds n up to a multiple of unit.
func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
