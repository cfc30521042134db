package tier

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/block"
	"millrace/internal/testenv"
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

// evictAt evicts the unit that a page belongs to.
func evictAt(t *testing.T, s *Store, f File, page int64) {
	t.Helper()
	if p := s.lookup(f.ID); !s.dirOf(p).evict(p.unitOf(page)) {
		t.Fatal("no eviction")
	}
}

// shape is a file, and what of it is cached.
type shape struct {
	f File
	e block.Extent
}

// shapes are a file that is unlinked when it is evicted, and two that are
// punched, of which one may be sent from its file.
func shapes() map[string]shape {
	small, large := testFile("small", "1", 3*page+5), largeFile("large")
	folios := testFileBlocks("folios", "1", wholeLimit+largestFolio+5, largestFolio)
	return map[string]shape{
		"unlinked": {small, small.Geometry().Whole()},
		"punched":  {large, block.Extent{Length: 4 * page}},
		"folios":   {folios, block.Extent{Length: largestFolio}},
	}
}

// stores returns makers of a store that has a file of each shape, on the file
// system of temporary files and on tmpfs, where the kernel can tell who has a
// file.
func stores() map[string]func(t *testing.T) (*Store, shape) { return storesOf(shapes()) }

func storesOf(shapes map[string]shape) map[string]func(t *testing.T) (*Store, shape) {
	all := map[string]func(t *testing.T) (*Store, shape){}
	for name, sh := range shapes {
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
			if done, found := s.dirs[0].evictNext(0); !done || !found {
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
// reads late, gets the bytes of the file. A part of which folios may be cut is
// sent by copy for that reason.
func TestSendInFlight(t *testing.T) {
	for name, giveUp := range map[string]func(t *testing.T, s *Store, sh shape){
		"evicted": func(t *testing.T, s *Store, sh shape) {
			t.Helper()
			first, _ := sh.f.Geometry().PageRange(sh.e)
			evictAt(t, s, sh.f, first)
		},
		"damaged in part": func(t *testing.T, s *Store, sh shape) {
			t.Helper()
			first, end := sh.f.Geometry().PageRange(sh.e)
			dropPages(s, sh.f, first, end-1)
			s.upkeep()
		},
		"damaged": func(t *testing.T, s *Store, sh shape) {
			t.Helper()
			first, end := sh.f.Geometry().PageRange(sh.e)
			dropPages(s, sh.f, first, end)
			s.upkeep()
		},
		"freed": func(t *testing.T, s *Store, sh shape) {
			t.Helper()
			if _, _, err := s.Drop(1, sh.f.Path); err != nil {
				t.Fatal(err)
			}
			s.upkeep()
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := shapes()
			// The file's last folio goes on behind its end.
			end := testFileBlocks("end", "1", wholeLimit+3*page+5, largestFolio)
			all["end of folios"] = shape{end, block.Extent{Offset: wholeLimit, Length: 3*page + 5}}
			for name, open := range storesOf(all) {
				for network, pair := range map[string]func(*testing.T) (a, b net.Conn){"tcp": tcpPair, "unix": unixPair} {
					t.Run(name+"/"+network, func(t *testing.T) {
						s, sh := open(t)
						from, to := pair(t)
						n := send(t, s, sh, from)
						giveUp(t, s, sh)
						checkLedger(t, s)
						got, want := make([]byte, n), make([]byte, n)
						content(sh.f, want, sh.e.Offset)
						if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
							t.Fatalf("other bytes arrive, from %d on: %v", firstDifference(got, want), err)
						}
					})
				}
			}
		})
	}
}

// dropPages makes pages absent as if they had been found damaged.
func dropPages(s *Store, f File, first, end int64) {
	p := s.lookup(f.ID)
	d := s.dirOf(p)
	d.gate.RLock()
	defer d.gate.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := first; i < end; i++ {
		d.dropPage(p, p.unitOf(i), i)
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

func tcpPair(t *testing.T) (from, to net.Conn) {
	t.Helper()
	return pair(t, "tcp", "127.0.0.1:0")
}

func unixPair(t *testing.T) (from, to net.Conn) {
	t.Helper()
	return pair(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func pair(t *testing.T, network, address string) (from, to net.Conn) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if to, err = (&net.Dialer{}).DialContext(t.Context(), network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	if from, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	return from, to
}

// send puts as much of what is cached as fits into the socket's queue, as a
// worker does: from the file where the store gives it, else by copy. It
// returns how many bytes are in the queue after the handle's end.
func send(t *testing.T, s *Store, sh shape, to net.Conn) (n int) {
	t.Helper()
	h, err := s.Acquire(sh.f, sh.e)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	file, base, byFile := h.Section(sh.e.Offset, sh.e.Length)
	if byFile != h.p.sendable() {
		t.Fatalf("sent from its file: %t", byFile)
	}
	all := make([]byte, sh.e.Length)
	if _, err := h.ReadAt(all, sh.e.Offset); err != nil {
		t.Fatal(err)
	}
	conn, err := to.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Write(func(fd uintptr) bool {
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
	return n
}
