package tier

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// indexLog appends records to the current segment. An append returns when the
// bytes are in the kernel; records of concurrent appends share one write.
type indexLog struct {
	fs    vfs.FS
	dir   string
	chunk int64 // unit of preallocation, in bytes
	boot  [16]byte

	mu  sync.Mutex // guards cur
	cur *logBatch

	writeMu sync.Mutex // one write at a time; guards the rest; taken before mu
	file    vfs.File
	seq     uint64
	off     int64  // where the next record goes
	room    int64  // up to where the segment has room on the disk
	since   int64  // bytes appended since the last snapshot
	broken  error  // set when what the segment holds is no longer known
	early   []byte // records of the recovery, before there is a segment
}

type logBatch struct {
	buf     []byte
	written bool
	err     error
}

// logPosition is a place in the log: all records before it.
type logPosition struct {
	segment uint64
	offset  int64
}

// newSegment creates segment seq with its header and a first chunk of room.
// The caller has charged the chunk.
func (l *indexLog) newSegment(seq uint64) (vfs.File, error) {
	name := segmentName(l.dir, seq)
	f, err := l.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	// A file system that cannot preallocate still works; only a full disk
	// then refuses the records of evictions.
	if err = f.Fallocate(0, l.chunk); errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	if err == nil {
		_, err = f.WriteAt(header{magic: segmentMagic, seq: seq, boot: l.boot}.encode(), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), l.fs.Remove(name))
	}
	return f, nil
}

// use makes f the current segment and returns the one before it, if any. The
// caller keeps appends away meanwhile.
func (l *indexLog) use(f vfs.File, seq uint64) (old vfs.File) {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	old = l.file
	l.file, l.seq, l.off, l.room = f, seq, headerSize, l.chunk
	l.broken = nil
	return old
}

// append writes frames, which are whole, and returns when they are written.
func (l *indexLog) append(frames []byte) error {
	l.mu.Lock()
	b := l.cur
	if b == nil {
		b = &logBatch{}
		l.cur = b
	}
	b.buf = append(b.buf, frames...)
	l.mu.Unlock()

	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if b.written {
		return b.err
	}
	l.mu.Lock()
	l.cur = nil // later appends start another batch
	l.mu.Unlock()
	b.err = l.write(b.buf)
	b.written, b.buf = true, nil
	return b.err
}

// write puts buf at the end of the segment. writeMu is held.
func (l *indexLog) write(buf []byte) error {
	if l.broken != nil {
		return l.broken
	}
	if l.file == nil {
		l.early = append(l.early, buf...)
		return nil
	}
	if _, err := l.file.WriteAt(buf, l.off); err != nil {
		// What was written of it must not come to life when later records
		// are written over its start.
		if cut := l.file.Truncate(l.off); cut != nil {
			l.broken = errs.E(errs.Unavailable, "append to index", segmentName(l.dir, l.seq), errors.Join(err, cut))
		}
		l.room = min(l.room, l.off) // the cut gave the rest of the room back
		return fmt.Errorf("append to index: %w", err)
	}
	l.off += int64(len(buf))
	l.since += int64(len(buf))
	return nil
}

// start writes what was appended before there was a segment.
func (l *indexLog) start() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	early := l.early
	l.early = nil
	if len(early) == 0 {
		return nil
	}
	return l.write(early)
}

// position returns the end of the log.
func (l *indexLog) position() logPosition {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	return logPosition{l.seq, l.off}
}

// left returns the bytes of preallocated room that are not yet written.
func (l *indexLog) left() int64 {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	return l.room - l.off
}

// extend gives the segment one more chunk of room, which the caller charged.
func (l *indexLog) extend() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	start := max(l.room, l.off)
	if err := l.file.Fallocate(start, l.chunk); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		// A full disk may have given a part of it.
		return errors.Join(fmt.Errorf("extend index: %w", err), l.file.PunchHole(start, l.chunk))
	}
	l.room = start + l.chunk
	return nil
}

// sync makes the segment durable.
func (l *indexLog) sync() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	return l.file.Sync()
}

// close closes the current segment; appends after it fail.
func (l *indexLog) close() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if l.file == nil {
		return nil
	}
	l.broken = errs.E(errs.Unavailable, "append to index", l.dir, errors.New("the cache directory is closed"))
	err := l.file.Close()
	l.file = nil
	return err
}

// failure returns why the log takes no records any more, or nil.
func (l *indexLog) failure() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	return l.broken
}

// grown returns the bytes appended since the last snapshot.
func (l *indexLog) grown() int64 {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	return l.since
}

// restart counts from a new snapshot on.
func (l *indexLog) restart() {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.since = l.off
}
