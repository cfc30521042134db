package tier

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/testenv"
	"millrace/internal/vfs"
)

// evictFile evicts a file, or the first block of one that is evicted by block.
func evictFile(t *testing.T, s *Store, f File) bool {
	t.Helper()
	p := s.lookup(f.ID)
	if p == nil {
		t.Fatalf("%s is not cached", f.Path)
	}
	return s.dirOf(p).evict(p.unitOf(0))
}

// shape is a file, and what of it is cached.
type shape struct {
	f File
	e block.Extent
}

// shapes are a file that is unlinked when it is evicted, and one that is
// punched.
func shapes() map[string]shape {
	small, large := testFile("small", "1", 3*page+5), largeFile("large")
	return map[string]shape{
		"unlinked": {small, small.Geometry().Whole()},
		"punched":  {large, block.Extent{Length: 4 * page}},
	}
}

// stores returns makers of a store that has a file of each shape, on the file
// system of temporary files and on tmpfs, where the kernel can tell who has a
// file.
func stores() map[string]func(t *testing.T) (*Store, shape) {
	all := map[string]func(t *testing.T) (*Store, shape){}
	for name, sh := range shapes() {
		all["disk/"+name] = func(t *testing.T) (*Store, shape) {
			t.Helper()
			return storeOf(t, t.TempDir(), sh), sh
		}
		all["tmpfs/"+name] = func(t *testing.T) (*Store, shape) {
			t.Helper()
			testenv.Require(t, testenv.Tmpfs)
			dir, err := os.MkdirTemp(testenv.TmpfsDir, "millrace-rules-") //nolint:usetesting // that is no tmpfs
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			return storeOf(t, dir, sh), sh
		}
	}
	return all
}

func storeOf(t *testing.T, dir string, sh shape) *Store {
	t.Helper()
	s := openStore(t, dir, 16*mib)
	if !s.dirs[0].canLease.Load() {
		t.Skipf("SKIPPED, NOT TESTED: the file system of %s has no leases", dir)
	}
	if err := fillRange(s, sh.f, sh.e); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestHeldElsewhere: what another process has open or mapped is no victim,
// whatever that process does, and is one when it is gone.
func TestHeldElsewhere(t *testing.T) {
	for _, tc := range []struct {
		name, how      string
		paused, killed bool
	}{
		{name: "open", how: "open"},
		{name: "mapped, descriptor closed", how: "map"},
		{name: "paused", how: "open", paused: true},
		{name: "killed", how: "open", killed: true},
		{name: "mapped, killed while paused", how: "map", paused: true, killed: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, open := range stores() {
				t.Run(name, func(t *testing.T) {
					s, sh := open(t)
					h := startHolder(t, tc.how, sh.e.Length, s.dirs[0].partName(sh.f.ID))
					if tc.paused {
						h.signal(syscall.SIGSTOP)
					}
					if evictFile(t, s, sh.f) {
						t.Error("it was evicted while another process had it")
					}
					checkLedger(t, s)
					if tc.paused {
						h.signal(syscall.SIGCONT)
					}
					h.unchanged()
					if tc.paused {
						h.signal(syscall.SIGSTOP)
					}
					if tc.killed {
						h.kill()
					} else {
						h.signal(syscall.SIGCONT)
						h.leave()
					}
					if !evictFile(t, s, sh.f) {
						t.Error("it is no victim although nobody has it")
					}
					mustRead(t, s, sh.f, 0)
					checkLedger(t, s)
				})
			}
		})
	}
}

// TestHeldFiles: an older version, and a file that was freed, leave the cache
// at once. Who has them keeps their bytes, and they stay charged, over a
// restart too, until the kernel proves that nobody has them.
func TestHeldFiles(t *testing.T) {
	leave := map[string]func(t *testing.T, s *Store, f File){
		"superseded": func(t *testing.T, s *Store, f File) {
			t.Helper()
			newer := testFileBlocks(f.Path, "2", f.Length, f.BlockSize)
			fill1(t, s, newer, 0)
			if done, found := s.dirs[0].evictNext(); !done || !found {
				t.Fatal("the older version is no victim")
			}
			mustRead(t, s, newer, 1)
		},
		"freed": func(t *testing.T, s *Store, f File) {
			t.Helper()
			if files, _, err := s.Drop(1, f.Path); err != nil || files != 1 {
				t.Fatal(files, err)
			}
		},
	}
	for name, leave := range leave {
		t.Run(name, func(t *testing.T) {
			for name, open := range stores() {
				t.Run(name, func(t *testing.T) {
					s, sh := open(t)
					h := startHolder(t, "open", sh.e.Length, s.dirs[0].partName(sh.f.ID))
					leave(t, s, sh.f)
					mustRead(t, s, sh.f, 0)
					root, held := s.dirs[0].root, s.Status()[0].Held
					if held < sh.e.Length {
						t.Errorf("%d bytes are held", held)
					}
					checkLedger(t, s)
					s.upkeep()
					h.unchanged()
					abandon(t, s)
					s = openStore(t, root, 16*mib)
					if got := s.Status()[0].Held; got < sh.e.Length {
						t.Errorf("%d bytes are held after a restart", got)
					}
					checkLedger(t, s)
					h.unchanged()
					h.leave()
					s.upkeep()
					if got := s.Status()[0].Held; got != 0 {
						t.Errorf("%d bytes are held that nobody has", got)
					}
					if left, err := os.ReadDir(filepath.Join(root, heldDir)); err != nil || len(left) != 0 {
						t.Errorf("%v, %v", left, err)
					}
					checkLedger(t, s)
				})
			}
		})
	}
}

// TestSendInFlight gives up what sits in a socket's queue: the peer, which
// reads late, gets the bytes of the file.
func TestSendInFlight(t *testing.T) {
	for name, giveUp := range map[string]func(t *testing.T, s *Store, sh shape, punches bool){
		"evicted": func(t *testing.T, s *Store, sh shape, punches bool) {
			t.Helper()
			if evictFile(t, s, sh.f) == punches {
				t.Fatal("a block is a victim while it is being sent, or another is none")
			}
		},
		"damaged": func(t *testing.T, s *Store, sh shape, _ bool) {
			t.Helper()
			drop3Pages(s, sh.f)
			s.upkeep()
		},
		"freed": func(t *testing.T, s *Store, sh shape, _ bool) {
			t.Helper()
			if _, _, err := s.Drop(1, sh.f.Path); err != nil {
				t.Fatal(err)
			}
			s.upkeep()
		},
		"killed, then evicted": func(t *testing.T, s *Store, sh shape, punches bool) {
			t.Helper()
			abandon(t, s)
			s = openStore(t, s.dirs[0].root, 16*mib)
			if evictFile(t, s, sh.f) == punches {
				t.Fatal("a block is a victim while it is being sent, or another is none")
			}
		},
		"damaged, then killed": func(t *testing.T, s *Store, sh shape, punches bool) {
			t.Helper()
			drop3Pages(s, sh.f)
			full := roomOf(t, s, sh.f)
			abandon(t, s)
			s = openStore(t, s.dirs[0].root, 16*mib)
			s.upkeep()
			if got := roomOf(t, s, sh.f); punches && got != full {
				t.Fatalf("the file takes %d bytes, it took %d: pages were punched that are being sent", got, full)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for name, open := range stores() {
				for network, pair := range map[string]func(*testing.T) (from, to conn){"tcp": tcpPair, "unix": unixPair} {
					for _, cut := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s/%s/cut=%v", name, network, cut), func(t *testing.T) {
							s, sh := open(t)
							from, to := pair(t)
							n, byFile := send(t, s, sh, from)
							if cut { // the peer has the bytes all the same
								if err := from.Close(); err != nil {
									t.Fatal(err)
								}
							}
							giveUp(t, s, sh, byFile && s.lookup(sh.f.ID).has(partByBlock))
							got, want := make([]byte, n), make([]byte, n)
							content(sh.f, want, 0)
							if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
								t.Fatalf("other bytes arrive, from %d on: %v", firstDifference(got, want), err)
							}
						})
					}
				}
			}
		})
	}
}

// roomOf returns what a file's part takes on the disk.
func roomOf(t *testing.T, s *Store, f File) int64 {
	t.Helper()
	fi, err := os.Stat(s.dirs[0].partName(f.ID))
	if err != nil {
		t.Fatal(err)
	}
	return vfs.Allocated(fi)
}

// drop3Pages is what a reader does who finds that three pages are damaged.
func drop3Pages(s *Store, f File) {
	p := s.lookup(f.ID)
	d := s.dirOf(p)
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range int64(3) {
		d.dropPage(p, p.unitOf(i), i)
	}
}

// TestReceivedBlock sends a block of a large file: it is a victim, and its
// damaged pages give their room back, when the peer has received it or is
// gone, and not before.
func TestReceivedBlock(t *testing.T) {
	sh := shapes()["punched"]
	for network, pair := range map[string]func(*testing.T) (from, to conn){"tcp": tcpPair, "unix": unixPair} {
		for how, receive := range map[string]func(to conn, n int) error{
			"received": func(to conn, n int) error { _, err := io.ReadFull(to, make([]byte, n)); return err },
			"gone":     func(to conn, _ int) error { return to.Close() },
		} {
			t.Run(network+"/"+how, func(t *testing.T) {
				s := storeOf(t, t.TempDir(), sh)
				d := s.dirs[0]
				if !d.tellsSent {
					t.Skip("SKIPPED, NOT TESTED: the kernel does not tell what was received")
				}
				from, to := pair(t)
				n, byFile := send(t, s, sh, from)
				if !byFile {
					t.Fatal("it is sent by copy")
				}
				drop3Pages(s, sh.f)
				used := s.Status()[0].Used
				s.upkeep()
				if evictFile(t, s, sh.f) || s.Status()[0].Used != used {
					t.Fatal("room was given back while it was sent")
				}
				if err := receive(to, n); err != nil {
					t.Fatal(err)
				}
				if err := from.Close(); err != nil { // what could not be delivered goes
					t.Fatal(err)
				}
				eventually(t, "upkeep gives the room of damaged pages back", func() bool {
					s.upkeep()
					return s.Status()[0].Used == used-3*page
				})
				if !evictFile(t, s, sh.f) {
					t.Error("it is no victim although everything was received")
				}
				checkLedger(t, s)
			})
		}
	}
}

// eventually waits for what the kernel does in its own time: a processor frees
// the last buffers that another received from it when it next has traffic.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		from, to := tcpPair(t)
		if _, err := from.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnsentBlock: what was never sent is evicted without a question, for the
// answer would be no while it is not on the disk.
func TestUnsentBlock(t *testing.T) {
	s := storeOf(t, t.TempDir(), shapes()["punched"])
	if !evictFile(t, s, shapes()["punched"].f) {
		t.Fatal("it is no victim")
	}
}

// TestSendUntold: where the kernel does not tell what was received, nothing
// that may be punched is sent from its file.
func TestSendUntold(t *testing.T) {
	sh := shapes()["punched"]
	s := storeOf(t, t.TempDir(), sh)
	s.dirs[0].tellsSent = false
	h := acquire(t, s, sh.f, sh.e)
	if _, _, ok := h.Section(0, sh.e.Length); ok {
		t.Fatal("a part that may be punched is sent from its file")
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// conn is one end of a stream socket.
type conn interface {
	net.Conn
	syscall.Conn
}

func tcpPair(t *testing.T) (from, to conn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if to, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	if from, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	return from, to
}

func unixPair(t *testing.T) (from, to conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], ends[1]
}

// send puts as much of what is cached as fits into the socket's queue, as a
// worker does: from the file where the store gives it, else by copy. It
// returns how many bytes are in the queue after the handle's end, and which
// way they went.
func send(t *testing.T, s *Store, sh shape, to conn) (n int, byFile bool) {
	t.Helper()
	if err := s.dirs[0].checkpoint(0); err != nil { // what is not on the disk is no victim for that
		t.Fatal(err)
	}
	h, err := s.Acquire(sh.f, sh.e)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	file, base, byFile := h.Section(0, sh.e.Length)
	if byFile && h.p.has(partByBlock) && !s.dirs[0].tellsSent {
		t.Fatal("a part that may be punched is sent from its file")
	}
	all := make([]byte, sh.e.Length)
	if _, err := h.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	raw, err := to.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Write(func(fd uintptr) bool {
		for n < len(all) {
			var w int
			var err error
			if byFile {
				off := base + int64(n)
				w, err = unix.Sendfile(int(fd), int(file.Fd()), &off, len(all)-n)
			} else {
				w, err = unix.Write(int(fd), all[n:])
			}
			if err != nil {
				return true // the queue is full
			}
			n += w
		}
		return true
	})
	if err != nil || n < 64<<10 {
		t.Fatalf("%d bytes are in the queue: %v", n, err)
	}
	return n, byFile
}
