package fuse

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"millrace/internal/testenv"
)

// helperEnv makes the test binary one of the programs below, since a process
// that serves a mount had better not page-fault on it, and one of them is to
// be killed.
const helperEnv = "MILLRACE_FUSE_TEST_HELPER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperEnv); mode != "" {
		if err := helper(mode, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func helper(mode, name string) error {
	switch mode {
	case "mmap": // print the hash of a file that is read through a mapping
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		fmt.Printf("%x", sha256.Sum256(b))
		return unix.Munmap(b)
	case "mapped": // map a file and close it; its hash when stdin ends
		return hashLater(name)
	case "mount": // serve a mount until killed
		c := newFake(time.Hour)
		sampleTree(c, 10)
		m, err := New(DefaultConfig(), name, "/", c, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return err
		}
		go func() {
			<-m.Ready()
			fmt.Println("ready")
		}()
		return m.Run(context.Background())
	case "direct": // read a file b.N times by requests of one size: name, size, N
		return readDirect(name, os.Args[2], os.Args[3])
	case "hold": // keep a file open until stdin ends
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Println("open")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	default:
		return fmt.Errorf("no such helper: %s", mode)
	}
}

func hashLater(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Print(" ")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	fmt.Printf("%x", sha256.Sum256(b))
	return unix.Munmap(b)
}

// copyPath is a change of the configuration.
func copyPath(c *Config) { c.Passthrough = PassthroughOff }

// helperCmd prepares the test binary as a helper.
func helperCmd(t testing.TB, mode, name string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, name)
	cmd.Env = append(os.Environ(), helperEnv+"="+mode)
	cmd.Stderr = os.Stderr
	return cmd
}

// mounted is a mount of a test.
type mounted struct {
	dir  string
	stop context.CancelFunc
	done chan error // one value: what Run returned
	reg  *prometheus.Registry
}

// gauge returns the value of one of the mount's metrics.
func (m *mounted) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("no metric ", name)
	return 0
}

// patience bounds waits for what must happen: it only decides how long a broken
// build takes to fail.
const patience = time.Minute

// await waits until ok holds.
func (m *mounted) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal(what, " does not come")
		}
	}
}

// wait returns what Run returned.
func (m *mounted) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-m.done:
		m.done <- err
		return err
	case <-time.After(patience):
		t.Fatal("Run does not return")
		return nil
	}
}

// start runs a mount on dir, or on a fresh directory if that is empty.
// Whatever the test does, no mount is left.
func start(t testing.TB, c Client, dir string, change ...func(*Config)) *mounted {
	t.Helper()
	return startMount(t, c, dir, func(*Mount) {}, change...)
}

// startMount is start with a change of what no configuration says.
func startMount(t testing.TB, c Client, dir string, prepare func(*Mount), change ...func(*Config)) *mounted {
	t.Helper()
	testenv.Require(t, testenv.Fuse, testenv.Root)
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	reg := prometheus.NewRegistry()
	mount, err := New(cfg, dir, "/", c, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), reg)
	if err != nil {
		t.Fatal(err)
	}
	prepare(mount)
	ctx, stop := context.WithCancel(t.Context())
	m := &mounted{dir: dir, stop: stop, done: make(chan error, 1), reg: reg}
	go func() { m.done <- mount.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		forced := time.AfterFunc(patience, func() {
			t.Error("the mount does not end; it is forced")
			_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		})
		defer forced.Stop()
		if err := <-m.done; err != nil {
			t.Log("Run returned ", err)
		}
	})
	select {
	case <-mount.Ready():
	case err := <-m.done:
		m.done <- err
		t.Fatal("mount: ", err)
	case <-time.After(patience):
		t.Fatal("the mount does not get ready")
	}
	return m
}

func slogDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }
