package blockio

import (
	"fmt"
	"net"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// Values of ServerConfig.CongestionControl that are no names of the kernel's.
const (
	congestionAuto = "auto"
	congestionHost = "host"
)

// maxCongestionName is TCP_CA_NAME_MAX without its end.
const maxCongestionName = 15

var congestionName = regexp.MustCompile(`^[a-z0-9_-]+$`)

// ValidCongestionControl reports why name is no ServerConfig.CongestionControl.
func ValidCongestionControl(name string) error {
	if len(name) > maxCongestionName || !congestionName.MatchString(name) {
		return fmt.Errorf("congestion_control: %q: want auto, host or a name that the kernel knows", name)
	}
	return nil
}

// congestionControl returns what the connections of l are to have; empty is
// what they have. Only a name that was asked for and cannot be had is an error.
func congestionControl(l net.Listener, want string) (name string, _ error) {
	if want == congestionHost || l.Addr().Network() != "tcp" {
		return "", nil
	}
	var failed error
	control(l, func(fd int) {
		if want != congestionAuto {
			name, failed = want, unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, want)
			return
		}
		if has, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && unpaced(has) != has {
			name = unpaced(has)
		}
	})
	if failed != nil {
		return "", errs.E(errs.Invalid, "use congestion control", want, failed).
			WithHint("sysctl net.ipv4.tcp_allowed_congestion_control has the names that there are")
	}
	return name, nil
}

// setCongestionControl is for each connection: those that came before Serve
// inherited nothing from the listener.
func setCongestionControl(nc net.Conn, name string) {
	if name == "" {
		return
	}
	control(nc, func(fd int) {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) // costs more without, no less
	})
}

// control calls do with the descriptor of a socket that has one.
func control(socket any, do func(fd int)) {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) }) // fails if the socket is closed, as whoever uses it will see
	}
}

// unpaced returns what to use where the host has the given congestion control.
// BBR sends each 64 KiB by a timer, which costs a worker half as much CPU again
// as the sending, and gains nothing between machines of one cluster.
func unpaced(host string) string {
	if host == "bbr" {
		return "cubic"
	}
	return host
}
