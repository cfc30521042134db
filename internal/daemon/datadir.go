package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"

	"millrace/internal/errs"
)

// Lock is the hold on a data directory, so that two processes never use one.
type Lock struct{ f *os.File }

// LockDir takes the lock of dir, which must exist. A directory in use is
// errs.Busy, naming the process and the setting to change. The kernel drops
// the lock when the process ends, however it ends.
func LockDir(dir, setting string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.Wrap(err, "lock data directory", dir)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errs.Wrap(err, "lock data directory", dir)
		}
		who := "another process"
		if b, rerr := io.ReadAll(io.LimitReader(f, 32)); rerr == nil {
			if pid, perr := strconv.Atoi(strings.TrimSpace(string(b))); perr == nil {
				who = processOf(pid).String()
			}
		}
		return nil, errs.E(errs.Busy, "lock data directory", dir, fmt.Errorf("in use by %s", who)).WithHint("choose another with " + setting)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(errs.Wrap(err, "lock data directory", dir), f.Close())
	}
	return &Lock{f: f}, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// Close gives the lock back. The file stays: removing it would let two
// processes hold two locks of one name.
func (l *Lock) Close() error { return l.f.Close() }

// Addresses are the addresses that a process chose, by role-instance and name:
// {"master-0": {"grpc": "127.0.0.1:7760"}}.
type Addresses map[string]map[string]string

// Set enters one address.
func (a Addresses) Set(role, name, address string) {
	if a[role] == nil {
		a[role] = map[string]string{}
	}
	a[role][name] = address
}

// Write puts the addresses into dir/addresses.json, at once for its readers.
func (a Addresses) Write(dir string) error {
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return errs.Wrap(err, "encode addresses for", dir)
	}
	p := filepath.Join(dir, "addresses.json")
	if err := renameio.WriteFile(p, append(b, '\n'), 0o644); err != nil {
		return errs.Wrap(err, "write", p)
	}
	return nil
}
