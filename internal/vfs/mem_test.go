package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"testing"
)

// content is what a file holds, or the error of looking.
func content(fsys FS, name string) string {
	b, err := ReadFile(fsys, name, 1<<20)
	if err != nil {
		return "no file"
	}
	return string(b)
}

// outcomes returns what name holds after crashes of many seeds.
func outcomes(m *MemFS, name string) []string {
	var seen []string
	for seed := range uint64(300) {
		if got := content(m.Crash(seed), name); !slices.Contains(seen, got) {
			seen = append(seen, got)
		}
	}
	slices.Sort(seen)
	return seen
}

func TestMemCrash(t *testing.T) {
	text := func(c string, n int) string { return string(bytes.Repeat([]byte(c), n)) }
	write := func(t *testing.T, f File, off int64, s string) {
		t.Helper()
		if _, err := f.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("name", func(t *testing.T) {
		m := NewMem(1<<20, 100)
		f := openFile(t, m, "/f")
		write(t, f, 0, "x")
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if got := outcomes(m, "/f"); !slices.Equal(got, []string{"no file", "x"}) {
			t.Fatalf("before SyncDir: %q", got)
		}
		if err := m.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		if got := outcomes(m, "/f"); !slices.Equal(got, []string{"x"}) {
			t.Fatalf("after SyncDir: %q", got)
		}
		if err := m.Rename("/f", "/g"); err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(100) {
			c := m.Crash(seed)
			if (content(c, "/f") == "x") == (content(c, "/g") == "x") {
				t.Fatal("a renamed file has two names, or none")
			}
		}
		if err := m.Remove("/g"); err != nil {
			t.Fatal(err)
		}
		if got := outcomes(m, "/g"); len(got) != 2 {
			t.Fatalf("after an unlink: %q", got)
		}
	})
	t.Run("content", func(t *testing.T) {
		m := NewMem(1<<20, 100)
		f := openFile(t, m, "/f")
		write(t, f, 0, text("a", 2*memBlock))
		if err := f.SyncFS(); err != nil {
			t.Fatal(err)
		}
		if got := outcomes(m, "/f"); len(got) != 1 {
			t.Fatal("what was synced is not sure")
		}
		write(t, f, 0, text("b", memBlock))
		write(t, f, 2*memBlock, "c")
		first, last, torn := map[byte]bool{}, map[int]bool{}, false
		for _, got := range outcomes(m, "/f") {
			first[got[0]] = true
			last[len(got)] = true
			torn = torn || got[0] == 'b' && got[memBlock-1] == 'a'
			if got[memBlock:2*memBlock] != text("a", memBlock) {
				t.Fatal("a block changed that was not written")
			}
		}
		if len(first) != 2 || len(last) != 2 || !torn {
			t.Fatalf("first %v, lengths %v, torn %v", first, last, torn)
		}
		if err := f.Truncate(memBlock); err != nil {
			t.Fatal(err)
		}
		if err := f.PunchHole(0, memBlock); err != nil {
			t.Fatal(err)
		}
		if got := outcomes(m, "/f"); !slices.Contains(got, text("\x00", memBlock)) {
			t.Fatal("no crash keeps a truncation and a punch")
		}
	})
	t.Run("repeats by its seed, and leaves the file system", func(t *testing.T) {
		m := NewMem(1<<20, 100)
		for i := range 20 {
			write(t, openFile(t, m, fmt.Sprint("/", i)), 0, text("x", 3000*i))
		}
		for seed := range uint64(10) {
			a, b := m.Crash(seed), m.Crash(seed)
			for i := range 20 {
				name := fmt.Sprint("/", i)
				if content(a, name) != content(b, name) || content(m, name) != text("x", 3000*i) {
					t.Fatal(name)
				}
			}
		}
	})
}

func TestMemRoom(t *testing.T) {
	m := NewMem(8*memBlock, 4)
	f := openFile(t, m, "/f")
	if n, err := f.WriteAt(make([]byte, 9*memBlock), 100); n != 7*memBlock-100 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	if room, err := m.Statfs("/"); err != nil || room.Free != 0 || room.FreeInodes != 2 {
		t.Fatalf("%+v, %v", room, err)
	}
	if err := m.MkdirAll("/d", 0o700); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.PunchHole(0, 2*memBlock); err != nil {
		t.Fatal(err)
	}
	if err := f.Fallocate(20*memBlock, 3*memBlock); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := m.Remove("/f"); err != nil {
		t.Fatal(err)
	}
	if room, _ := m.Statfs("/"); room.Free != 0 {
		t.Fatalf("an open file without a name takes no room: %+v", room)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if room, _ := m.Statfs("/"); room.Free != 7*memBlock || room.FreeInodes != 3 {
		t.Fatalf("%+v", room)
	}
	for i := range 3 {
		openFile(t, m, fmt.Sprint("/", i))
	}
	if _, err := m.OpenFile("/more", os.O_CREATE|os.O_RDWR, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestMemViews: one process's end closes its files alone.
func TestMemViews(t *testing.T) {
	m := NewMem(1<<20, 100)
	other := m.View()
	ours, theirs := openFile(t, m, "/f"), openFile(t, other, "/f")
	if err := errors.Join(theirs.Lock(), m.Remove("/f")); err != nil {
		t.Fatal(err)
	}
	if err := ours.Lease(); !errors.Is(err, ErrShared) {
		t.Fatal(err)
	}
	other.Kill()
	if err := theirs.Sync(); !errors.Is(err, fs.ErrClosed) {
		t.Fatal(err)
	}
	if err := errors.Join(ours.Lease(), ours.Lock()); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	if room, _ := m.Statfs("/"); room.FreeInodes != 99 {
		t.Fatalf("%+v", room)
	}
}
