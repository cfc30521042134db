package blockio

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
)

// keptListener gives what it accepts to the test too.
type keptListener struct {
	*net.TCPListener
	accepted chan net.Conn
}

func (l *keptListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil {
		l.accepted <- c
	}
	return c, err
}

// congestionOf returns a socket's congestion control, or sets it first.
func congestionOf(t *testing.T, c syscall.Conn, set string) (has string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if set != "" {
			failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, set)
		}
		if failed == nil {
			has, failed = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return has
}

func listenKept(t *testing.T) *keptListener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		t.Fatalf("a %T", l)
	}
	return &keptListener{tcp, make(chan net.Conn, 1)}
}

func TestCongestionControl(t *testing.T) {
	const always = "reno" // every kernel has it, and everybody may use it
	l := listenKept(t)
	host := congestionOf(t, l, "")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ listener, setting, want string }{
		"a name":                     {"", always, always},
		"the host's":                 {"", congestionHost, host},
		"the host's, of all others":  {always, congestionHost, always},
		"auto, where it has another": {always, congestionAuto, always},
		"auto, as the host has it":   {"", congestionAuto, unpaced(host)},
	} {
		l := listenKept(t)
		congestionOf(t, l, c.listener)
		cfg := DefaultServerConfig()
		cfg.CongestionControl = c.setting
		srv := NewServer(cfg, Identity{WorkerID: "w1", BootID: "b1"}, oneFile(&testFile{data: pattern(100)}), discard(), nil)
		serveOn(t, srv, "tcp", l).dial(t)
		conn, ok := (<-l.accepted).(syscall.Conn)
		if !ok {
			t.Fatalf("%s: a connection without a descriptor", name)
		}
		if got := congestionOf(t, conn, ""); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// What is named and cannot be had is not passed over.
func TestCongestionControlThatIsNone(t *testing.T) {
	l := listenKept(t)
	cfg := DefaultServerConfig()
	cfg.CongestionControl = "of-no-kernel"
	srv := NewServer(cfg, Identity{}, oneFile(&testFile{}), discard(), nil)
	if err := srv.Serve(t.Context(), l); !errors.Is(err, errs.Invalid) {
		t.Errorf("Serve: %v, want %v", err, errs.Invalid)
	}
	for _, bad := range []string{"", "a name", "of-no-kernel-at-all"} {
		cfg.CongestionControl = bad
		if cfg.Validate() == nil {
			t.Errorf("%q is valid", bad)
		}
	}
	if got := unpaced("bbr"); got != "cubic" {
		t.Errorf("in place of bbr: %s", got)
	}
}
