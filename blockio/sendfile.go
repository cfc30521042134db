package blockio

import (
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// fileSend is the state of one sendfile(2) on a connection. Its callbacks are
// made once, so that a send allocates nothing.
type fileSend struct {
	head  []byte // frames and the header before the file's bytes
	fd    int
	off   int64
	left  int
	sent  int64
	err   error
	short bool // the file ended, or failed, before left bytes

	sendHead func(fd uintptr) bool
	sendFile func(fd uintptr) bool
}

// init makes the callbacks. Each does what can be done without waiting and
// returns false to be called again when the socket has room.
func (s *fileSend) init() {
	s.sendHead = func(fd uintptr) bool {
		for len(s.head) > 0 {
			n, err := unix.SendmsgN(int(fd), s.head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return false
			case err != nil:
				s.err = err
				return true
			}
			s.head = s.head[n:]
			s.sent += int64(n)
		}
		return true
	}
	s.sendFile = func(fd uintptr) bool {
		for s.left > 0 {
			n, err := unix.Sendfile(int(fd), s.fd, &s.off, s.left)
			switch {
			case n > 0:
				s.left -= n
				s.sent += int64(n)
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return false
			case err == nil: // the file is shorter
				s.short, s.err = true, io.ErrUnexpectedEOF
				return true
			default:
				s.err = err
				// The socket's errors end the connection; all others are the
				// file's, and the frame can still be completed.
				s.short = !isSocketError(err)
				return true
			}
		}
		return true
	}
}

// canSendFile reports whether f's bytes can leave without passing through us.
func (w *frameWriter) canSendFile(f FileSection) bool {
	fd := f.Fd()
	return w.raw != nil && fd <= math.MaxInt32
}

// dataFile sends one DATA frame whose payload is n bytes of f at off. If the
// file fails on the way, the frame is filled up with zeros and the file's
// error is returned: the request fails, the connection goes on.
func (w *frameWriter) dataFile(p Priority, h *header, f FileSection, off int64, n int) error {
	w.lock(p)
	defer w.unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.makeRoom(headerSize); err != nil {
		return err
	}
	h.Length = uint32(n)
	w.buf = appendHeader(w.buf, h)
	w.extendDeadline()
	s := &w.file
	s.head, s.fd, s.off, s.left, s.sent, s.err, s.short = w.buf, int(f.Fd()), off, n, 0, nil, false
	err := w.raw.Write(s.sendHead)
	if err == nil && s.err == nil {
		err = w.raw.Write(s.sendFile)
	}
	w.buf, s.head = w.buf[:0], nil
	w.sent(s.sent)
	switch {
	case err != nil:
		return w.fail(err)
	case s.err == nil:
		return nil
	case !s.short:
		return w.fail(s.err)
	}
	if err := w.zeros(s.left); err != nil {
		return err
	}
	return s.err
}

// zeros completes a frame that lacks n bytes.
func (w *frameWriter) zeros(n int) error {
	clear(w.buf[:cap(w.buf)])
	for n > 0 {
		k := min(n, cap(w.buf))
		w.buf = w.buf[:k]
		if err := w.flush(nil); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
