package blockio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/testenv"
)

// asUser runs fn in a thread that the kernel takes for one of another user.
func asUser(t *testing.T, uid int, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	set := func(uid int) {
		const keep = ^uintptr(0)
		// The system call, unlike package syscall's function, is for this thread alone.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			t.Fatal(errno)
		}
	}
	set(uid)
	fn()
	set(0)
	runtime.UnlockOSThread()
}

// Descriptors are offered to root, to the server's user and to those that the
// configuration names.
func TestDescriptorsByUser(t *testing.T) {
	testenv.Require(t, testenv.Root)
	data := pattern(1000)
	disk := onDisk(t, data)
	for name, tt := range map[string]struct {
		uid   int
		named []int
		want  error
	}{
		"root":           {0, nil, nil},
		"another user":   {1234, nil, errs.Unsupported},
		"one named":      {1234, []int{7, 1234}, nil},
		"one not named":  {1234, []int{7}, errs.Unsupported},
		"nobody, listed": {65534, []int{65534}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultServerConfig()
			cfg.DescriptorUIDs = tt.named
			f := &testFile{data: data, give: reopened(disk, 0, int64(len(data)))}
			srv := NewServer(cfg, Identity{WorkerID: "w1", BootID: "b1"}, oneFile(f), discard(), nil)
			// An abstract name: no permissions of directories stand in the way.
			addr := fmt.Sprintf("@millrace-test-%d-%s", os.Getpid(), t.Name())
			l, err := new(net.ListenConfig).Listen(t.Context(), "unix", addr)
			if err != nil {
				t.Fatal(err)
			}
			s := serveOn(t, srv, "unix", l)
			var conn net.Conn
			asUser(t, tt.uid, func() { conn, err = connectHere(addr) })
			if err != nil {
				t.Fatal(err)
			}
			hello, err := shakeHands(t.Context(), conn, DefaultClientConfig())
			if err != nil {
				t.Fatal(err)
			}
			c := newConn(conn, addr, DefaultClientConfig(), hello)
			defer c.Close()
			fd, _, err := c.Descriptor(t.Context(), mustOpen(t, c, "f", len(data)), DescriptorOptions{})
			if fd != nil {
				defer fd.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			s.stop()
		})
	}
}

// connectHere connects in the calling thread, whose user the server sees.
func connectHere(addr string) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), addr)
	defer file.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr}); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// Over TCP there is no user to know.
func TestPeerOverTCP(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok := peerUID(a); ok {
		t.Error("a pipe has a user")
	}
}
