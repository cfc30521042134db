package daemon

import (
	"crypto/sha256"
	"encoding/hex"
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

// NameFor returns the path of a directory in parent that stands for another
// one, dir, an absolute path: the same at each start, and another for each
// user.
func NameFor(parent, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(parent, fmt.Sprintf("millrace-%d-%s", os.Getuid(), hex.EncodeToString(sum[:6])))
}

// PrivateDir makes a directory of mode 0700 where others may make things too,
// and reports whether it was not there. One that is not of that mode, belongs
// to another user or is a link to elsewhere is errs.Permission.
func PrivateDir(path string) (made bool, err error) {
	err = os.Mkdir(path, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return false, errs.Wrap(err, "make directory", path)
	}
	made = err == nil
	fi, err := os.Lstat(path)
	if err != nil {
		return made, errs.Wrap(err, "look at directory", path)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || fi.Mode().Perm() != 0o700 || (ok && int(st.Uid) != os.Getuid()) {
		return made, errs.E(errs.Permission, "use directory", path, errors.New("it is not a directory of mode 0700 that is ours")).
			WithHint("see who made it, and remove it")
	}
	return made, nil
}
