package fuse

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/testenv"
)

// refusal says what a mount must answer that cannot be: the kind, and a text
// with the path, the cause, and what to do.
type refusal struct {
	kind  errs.Kind
	cause string
	todo  string
}

func (r refusal) check(t *testing.T, point string, err error) {
	t.Helper()
	if !errors.Is(err, r.kind) {
		t.Errorf("%v: kind %v, want %v", err, errs.KindOf(err), r.kind)
		return
	}
	for what, text := range map[string]string{"path": point, "cause": r.cause, "what to do": r.todo} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the message %q lacks the %s, %q", err, what, text)
		}
	}
}

// refused makes a mount and checks that both Check and Run refuse it.
func refused(t *testing.T, point string, want refusal, change ...func(*Mount)) {
	t.Helper()
	c := newFake(time.Hour)
	m, err := New(DefaultConfig(), point, "/", c, slogDiscard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(m)
	}
	want.check(t, point, m.Check(t.Context()))
	want.check(t, point, m.Run(t.Context()))
}

func TestMountPointMissing(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	point := filepath.Join(t.TempDir(), "none")
	refused(t, point, refusal{errs.NotFound, "does not exist", "mkdir " + point})
}

func TestMountPointIsAFile(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	point := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, point, refusal{errs.NotDir, "is not a directory", "choose an empty directory"})
}

func TestMountPointNotEmpty(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	point := t.TempDir()
	if err := os.WriteFile(filepath.Join(point, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, point, refusal{errs.NotEmpty, "holds precious", "-o nonempty"})
}

func TestMountPointAlreadyMounted(t *testing.T) {
	m := start(t, newFake(time.Hour), "")
	refused(t, m.dir, refusal{errs.Busy, "already a mount of Millrace", "millrace umount " + m.dir})
}

// TestMountPointDead kills the process of a mount; the next one clears the
// mount point and says so.
func TestMountPointDead(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	point := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	child := helperCmd(t, "mount", point)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil { // "ready"
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if _, err := os.ReadDir(point); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	var log bytes.Buffer
	m, err := New(DefaultConfig(), point, "/", newFake(time.Hour), slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if s := log.String(); !strings.Contains(s, "cleared the dead mount") || !strings.Contains(s, point) {
		t.Errorf("the log does not say that a dead mount was cleared: %q", s)
	}
	if isMounted(t, point) {
		t.Error("the dead mount is still there")
	}
}

func TestNoFuseDevice(t *testing.T) {
	point := t.TempDir()
	device := filepath.Join(t.TempDir(), "fuse")
	refused(t, point, refusal{errs.Unsupported, device + ": no such file", "modprobe fuse"}, func(m *Mount) { m.device = device })
}

func TestFuseDeviceClosedToUs(t *testing.T) {
	err := deviceRefused("/dev/fuse", os.ErrPermission)
	refusal{errs.Permission, "permission denied", "run as root"}.check(t, "/dev/fuse", err)
}
