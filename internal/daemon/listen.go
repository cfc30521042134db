package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"millrace/internal/errs"
)

// Endpoint names a listener for its user.
type Endpoint struct {
	What    string // what listens: "the master's gRPC"
	Setting string // which flag or key moves it: "--master-port or master.listen"
	Network string // "tcp" or "unix"
	Address string // host:port, or a path
}

// maxUnixPath is the longest path that the kernel takes for a Unix socket.
const maxUnixPath = 107

// Listen opens a listener. An address in use is errs.Busy, and its text names
// the process that holds it, as far as /proc lets us see, and the setting to
// change. A Unix socket left by a process that is gone is removed first.
func Listen(ctx context.Context, e Endpoint) (net.Listener, error) {
	if e.Network == "unix" {
		if err := removeStaleSocket(ctx, e.Address); err != nil {
			return nil, e.wrap(err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, e.Network, e.Address)
	if err != nil {
		return nil, e.wrap(err)
	}
	if e.Network == "unix" {
		if err := os.Chmod(e.Address, 0o600); err != nil {
			return nil, e.wrap(errors.Join(err, l.Close()))
		}
	}
	return l, nil
}

func (e Endpoint) wrap(err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return errs.Wrap(err, "listen for "+e.What+" on", e.Address)
	}
	who := "another process"
	if h, ok := holder(e.Network, e.Address); ok {
		who = h.String()
	}
	cause := fmt.Errorf("in use by %s", who)
	return errs.E(errs.Busy, "listen for "+e.What+" on", e.Address, cause).WithHint("choose another with " + e.Setting)
}

// removeStaleSocket unlinks a socket file that nobody listens on.
func removeStaleSocket(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(syscall.EADDRINUSE, c.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return err
}

// SocketPath returns the path of a Unix socket called name in dir. Where that
// would be longer than the kernel allows (107 bytes), it is a short path in a
// directory of mode 0700 under os.TempDir, named after dir, so that it is the
// same at each start. The directory is made, and refused when it belongs to
// someone else.
func SocketPath(dir, name string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("socket in %s: %w", dir, err)
	}
	if p := filepath.Join(dir, name); len(p) <= maxUnixPath {
		return p, nil
	}
	short := NameFor(os.TempDir(), dir)
	if _, err := PrivateDir(short); err != nil {
		return "", errs.Wrap(err, "make socket", filepath.Join(dir, name))
	}
	return filepath.Join(short, name), nil
}
