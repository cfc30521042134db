package blockio

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// canSendDescriptors reports whether the peer can be given descriptors: it is
// on the same host, behind a Unix socket.
func (w *frameWriter) canSendDescriptors() bool {
	_, local := w.conn.(*net.UnixConn)
	return local && w.raw != nil
}

// descriptor answers FD. What the File gives is closed here in any case: the
// peer has its own by then.
func (r *request) descriptor() error {
	d, ok := r.handle.file.(Descriptors)
	if !ok {
		return errs.E(errs.Unsupported, "pass a descriptor", "", errors.New("this server's files have none"))
	}
	f, base, length, err := d.Descriptor(r.ctx)
	if f != nil {
		defer f.Close()
	}
	switch {
	case err != nil:
		return err
	case f == nil || base < 0 || length != r.handle.geometry.Length || base > math.MaxInt64-length:
		return errs.E(errs.Internal, "pass a descriptor", "",
			fmt.Errorf("the handler gave %d bytes at %d for a file of %d", length, base, r.handle.geometry.Length))
	}
	if err := r.ctx.Err(); err != nil {
		return errs.Wrap(err, "pass a descriptor", "")
	}
	var room [descriptorSize]byte
	payload := appendDescriptor(room[:0], descriptorPayload{Base: uint64(base), Length: uint64(length)})
	h := r.dataHeader()
	return r.conn.out.dataDescriptor(r.head.Priority, &h, payload, f)
}

// dataDescriptor sends one DATA frame and, with its first byte, a descriptor.
// An error of the descriptor, as opposed to one of the connection, comes
// before anything was sent.
func (w *frameWriter) dataDescriptor(p Priority, h *header, payload []byte, f *os.File) error {
	raw, err := f.SyscallConn() // leaves the descriptor's mode alone, unlike Fd
	if err != nil {
		return errs.E(errs.Internal, "pass a descriptor", "", err)
	}
	w.lock(p)
	defer w.unlock()
	if len(w.buf) > 0 { // the descriptor belongs to the first byte that is sent
		if err := w.flush(nil); err != nil {
			return err
		}
	}
	if w.err != nil {
		return w.err
	}
	h.Length = uint32(len(payload))
	frame := append(appendHeader(w.buf, h), payload...)
	w.extendDeadline()
	var sent int64
	var failed, sendErr error
	gone := raw.Control(func(fd uintptr) {
		rights := unix.UnixRights(int(fd))
		sendErr = w.raw.Write(func(socket uintptr) bool {
			for len(frame) > 0 {
				n, err := unix.SendmsgN(int(socket), frame, rights, nil, unix.MSG_NOSIGNAL)
				switch {
				case errors.Is(err, unix.EINTR):
					continue
				case errors.Is(err, unix.EAGAIN):
					return false
				case err != nil:
					failed = err
					return true
				}
				frame, rights = frame[n:], nil
				sent += int64(n)
			}
			return true
		})
	})
	w.sent(sent)
	switch {
	case gone != nil:
		return errs.E(errs.Internal, "pass a descriptor", "", gone)
	case sendErr != nil: // the deadline, or the connection was closed
		return w.fail(sendErr)
	case failed == nil:
		return nil
	case sent > 0 || isSocketError(failed):
		return w.fail(failed)
	case errors.Is(failed, unix.ETOOMANYREFS):
		return errs.E(errs.Throttled, "pass a descriptor", "", failed)
	default:
		return errs.E(errs.Unavailable, "pass a descriptor", "", failed)
	}
}

// isSocketError reports whether err means that the connection is over.
func isSocketError(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN)
}
