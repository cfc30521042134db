package blockio

import (
	"errors"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// source is what arrives on a server's connection. Before it waits for more it
// calls idle, on the goroutine that reads.
type source struct {
	nc   net.Conn
	raw  syscall.RawConn // nil where the connection has no descriptor
	idle func()

	// Of one Read.
	p   []byte
	n   int
	err error
	try func(fd uintptr) bool
}

func newSource(nc net.Conn, idle func()) *source {
	s := &source{nc: nc, raw: rawConn(nc), idle: idle}
	s.try = func(fd uintptr) bool {
		for {
			s.n, s.err = unix.Read(int(fd), s.p)
			switch {
			case errors.Is(s.err, unix.EINTR):
			case errors.Is(s.err, unix.EAGAIN):
				s.idle()
				return false
			default:
				return true
			}
		}
	}
	return s
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.raw == nil {
		s.idle()
		return s.nc.Read(p)
	}
	s.p = p
	err := s.raw.Read(s.try)
	s.p = nil
	switch {
	case err != nil: // nothing was read: the deadline, or the connection was closed
		return 0, err
	case s.err != nil:
		return 0, s.err
	case s.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return s.n, nil
}
