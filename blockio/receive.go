package blockio

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// lostDescriptor stands for one that arrived while this process could have no
// more of them.
const lostDescriptor = -1

// receiver reads from the socket of a client's connection, with recvmsg(2): on
// a Unix socket descriptors come with the bytes, which read(2) would throw
// away. It belongs to the connection's reader.
type receiver struct {
	local       bool  // a Unix socket
	most        int   // descriptors that may be kept
	descriptors []int // that arrived and nobody took yet, in order

	msg  unix.Msghdr
	iov  [2]unix.Iovec
	room [rightsSize]byte
}

// rightsSize is the room for one descriptor, rounded up to where the next
// message would begin.
const rightsSize = (unix.SizeofCmsghdr + 4 + 7) &^ 7

// read reads what has arrived to p, which is not empty, and what is behind
// that to more, which may be, without waiting.
func (r *receiver) read(fd int, p, more []byte) (int, error) {
	for {
		n, err := r.readOnce(fd, p, more)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (r *receiver) readOnce(fd int, p, more []byte) (int, error) {
	// unix.Recvmsg allocates for the sender's name, which nobody wants.
	r.iov[0].Base = &p[0]
	r.iov[0].SetLen(len(p))
	r.msg = unix.Msghdr{Iov: &r.iov[0]}
	r.msg.SetIovlen(1)
	if len(more) > 0 {
		r.iov[1].Base = &more[0]
		r.iov[1].SetLen(len(more))
		r.msg.SetIovlen(2)
	}
	if r.local {
		r.msg.Control = &r.room[0]
		r.msg.SetControllen(unix.CmsgLen(4)) // one descriptor, not two: the rest of the room is padding
	}
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msg)), unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT) //nolint:gosec // as in package unix
	r.iov[0].Base, r.iov[1].Base = nil, nil
	if errno != 0 {
		return 0, errno
	}
	if r.msg.Controllen > 0 || r.msg.Flags&unix.MSG_CTRUNC != 0 {
		if err := r.keep(r.room[:r.msg.Controllen], r.msg.Flags&unix.MSG_CTRUNC != 0); err != nil {
			return 0, err
		}
	}
	return int(n), nil
}

// keep keeps the descriptor in a control message. When cut, there were more
// than had room, which is a lie, or none could be had, which is our trouble.
func (r *receiver) keep(control []byte, cut bool) error {
	fds, err := parseRights(control)
	if err == nil && cut && len(fds) == 0 {
		fds, cut = []int{lostDescriptor}, false
	}
	if err == nil && (cut || len(fds) != 1 || len(r.descriptors) >= r.most) {
		err = fmt.Errorf("%w: more descriptors than were asked for", errProtocol)
	}
	if err != nil {
		closeAll(fds)
		return err
	}
	r.descriptors = append(r.descriptors, fds...)
	return nil
}

// parseRights returns the descriptors in control messages.
func parseRights(control []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

// take returns the descriptor that arrived first.
func (r *receiver) take() (fd int, err error) {
	if len(r.descriptors) == 0 {
		return 0, fmt.Errorf("%w: an answer to FD without a descriptor", errProtocol)
	}
	fd = r.descriptors[0]
	r.descriptors = r.descriptors[1:]
	return fd, nil
}

// close closes what nobody took.
func (r *receiver) close() {
	closeAll(r.descriptors)
	r.descriptors = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd != lostDescriptor {
			_ = unix.Close(fd) // was never written to
		}
	}
}

// checkDescriptor reports why a descriptor is not one of a file whose bytes
// end at end: what a server passes can be anything.
func checkDescriptor(fd int, end int64) error {
	if fd == lostDescriptor {
		return errs.E(errs.Unavailable, "receive a descriptor", "", unix.EMFILE).WithHint("raise the limit of open files: ulimit -n")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errs.E(errs.Unavailable, "look at a descriptor", "", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil:
		return errs.E(errs.Unavailable, "look at a descriptor", "", err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || flags&unix.O_ACCMODE != unix.O_RDONLY:
		return errs.E(errs.Corrupt, "look at a descriptor", "", errors.New("not a file that is open for reading alone"))
	case st.Size < end:
		return errs.E(errs.Corrupt, "look at a descriptor", "", fmt.Errorf("the file ends at %d, its bytes at %d", st.Size, end))
	}
	return nil
}
