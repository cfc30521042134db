package blockio

import (
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// mayHaveDescriptors reports whether the peer at the other end of a Unix
// socket may be given descriptors: it runs as root, as the server's own user,
// or as one that the configuration names. Others read through the server,
// since a descriptor cannot be taken back.
func (s *Server) mayHaveDescriptors(nc net.Conn) bool {
	uid, ok := peerUID(nc)
	return ok && (uid == 0 || uid == os.Geteuid() || slices.Contains(s.cfg.DescriptorUIDs, uid))
}

// peerUID returns the user of the process that connected, by the kernel's
// word. ok is false where there is none: on TCP.
func peerUID(nc net.Conn) (uid int, ok bool) {
	socket, ok := nc.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *unix.Ucred
	err = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return 0, false
	}
	return int(cred.Uid), true
}
