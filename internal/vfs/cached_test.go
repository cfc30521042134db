package vfs

import (
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadCached: what is in memory is read, what is on the disk alone is not.
func TestReadCached(t *testing.T) {
	f := openFile(t, OS(), filepath.Join(t.TempDir(), "f"))
	text := []byte("something that is longer than nothing")
	if _, err := f.WriteAt(text, 5000); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if !ReadCached(f, b, 5000) {
		t.Skip("SKIPPED, NOT TESTED: the file system of temporary files does not tell what is in memory")
	}
	if !bytes.Equal(b, text) {
		t.Errorf("%q", b)
	}
	if ReadCached(f, b, 5001) {
		t.Error("bytes behind the end")
	}
	other := openFile(t, Faulty(OS()), filepath.Join(t.TempDir(), "f"))
	if ReadCached(other, b, 0) || Cached(other, 0, 1) {
		t.Error("a wrapped file is read past its wrapping")
	}
	if !Cached(f, 5000, 1) {
		t.Error("it is said not to be in memory")
	}
	whole := int64(5000 + len(text))
	file, _ := OSFile(f)
	if err := unix.Fadvise(int(file.Fd()), 0, whole, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if pages, err := cachedPages(int(file.Fd()), 0, whole); err != nil || pages != 0 {
		t.Skip("SKIPPED, NOT TESTED: this kernel or file system keeps what it has in memory")
	}
	// ReadCached comes last: the kernel may begin to read for it.
	if Cached(f, 5000, 1) || Cached(f, 4096, whole-4096) || ReadCached(f, b, 5000) {
		t.Error("it is said to be in memory")
	}
	if _, err := f.ReadAt(b, 5000); err != nil {
		t.Fatal(err)
	}
	if !ReadCached(f, b, 5000) || !Cached(f, 5000, int64(len(text))) {
		t.Error("it is said not to be in memory")
	}
}
