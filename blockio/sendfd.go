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

// handOut asks the File for the descriptor that an FD wants.
func (r *request) handOut() (f *os.File, base, length int64, mark uint64, err error) {
	if r.head.Flags&flagInPlace != 0 {
		if p, ok := r.handle.file.(InPlace); ok {
			return p.PartialDescriptor(r.ctx)
		}
	} else if d, ok := r.handle.file.(Descriptors); ok {
		f, base, length, err = d.Descriptor(r.ctx, DescriptorOptions{Priority: r.head.Priority, Fill: r.head.Flags&flagFill != 0})
		return f, base, length, 0, err
	}
	return nil, 0, 0, 0, errs.E(errs.Unsupported, "pass a descriptor", "", errors.New("this server's files have none"))
}

// descriptor asks the File for its descriptor, which answerDescriptor sends.
func (r *request) descriptor() error {
	f, base, length, mark, err := r.handOut()
	r.fd = f
	switch {
	case err != nil:
		return err
	case f == nil || base < 0 || (mark == 0) == (r.head.Flags&flagInPlace != 0) || length != r.handle.geometry.Length || base > math.MaxInt64-length:
		return errs.E(errs.Internal, "pass a descriptor", "",
			fmt.Errorf("the handler gave %d bytes at %d for a file of %d", length, base, r.handle.geometry.Length))
	}
	if err := r.ctx.Err(); err != nil {
		return errs.Wrap(err, "pass a descriptor", "")
	}
	r.fdPayload = descriptorPayload{Base: uint64(base), Length: uint64(length), Mark: mark}
	return nil
}

// answerDescriptor answers FD with DATA and END, of which h is the header. An
// error of the descriptor, as opposed to one of the connection, comes before
// anything was sent: it is to be the answer.
func (r *request) answerDescriptor(h *header) error {
	data := r.dataHeader()
	data.Length = r.fdPayload.size()
	h.Op, h.Length = opEnd, endFixed
	frames := make([]byte, 0, 2*headerSize+descriptorSize+markSize+endFixed)
	frames = appendDescriptor(appendHeader(frames, &data), r.fdPayload)
	frames = appendEnd(appendHeader(frames, h), &endPayload{})
	return r.conn.out.withDescriptor(r.head.Priority, frames, r.fd)
}

// withDescriptor sends frames and, with the first byte, a descriptor. An error
// of the descriptor, as opposed to one of the connection, comes before
// anything was sent; that of the connection is kept for whoever asks next.
func (w *frameWriter) withDescriptor(p Priority, frames []byte, f *os.File) error {
	raw, err := f.SyscallConn() // leaves the descriptor's mode alone, unlike Fd
	if err != nil {
		return errs.E(errs.Internal, "pass a descriptor", "", err)
	}
	w.lock(p)
	defer w.unlock()
	if len(w.buf) > 0 { // the descriptor belongs to the first byte that is sent
		_ = w.flush(nil) // kept in w.err
	}
	if w.err != nil {
		return nil
	}
	w.extendDeadline()
	var sent int64
	var failed, sendErr error
	gone := raw.Control(func(fd uintptr) {
		rights := unix.UnixRights(int(fd))
		sendErr = w.raw.Write(func(socket uintptr) bool {
			for len(frames) > 0 {
				n, err := unix.SendmsgN(int(socket), frames, rights, nil, unix.MSG_NOSIGNAL)
				switch {
				case errors.Is(err, unix.EINTR):
					continue
				case errors.Is(err, unix.EAGAIN):
					return false
				case err != nil:
					failed = err
					return true
				}
				frames, rights = frames[n:], nil
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
		_ = w.fail(sendErr) // kept in w.err
	case failed == nil:
	case sent > 0 || isSocketError(failed):
		_ = w.fail(failed) // kept in w.err
	case errors.Is(failed, unix.ETOOMANYREFS):
		return errs.E(errs.Throttled, "pass a descriptor", "", failed)
	default:
		return errs.E(errs.Unavailable, "pass a descriptor", "", failed)
	}
	return nil
}

// isSocketError reports whether err means that the connection is over.
func isSocketError(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN)
}
