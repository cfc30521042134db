package tier

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/vfs"
)

func testConfig(dir string, capacity int64) Config {
	c := DefaultConfig()
	c.Dir, c.Capacity, c.FreeShare = dir, size.Bytes(capacity), 0
	c.MaxErrors = 1 << 20 // faults are for the tests that set it
	return c
}

func testOptions() Options { return Options{BootID: [16]byte{1}} }

type opener func(o *Options, c *Config)

func withFS(fsys vfs.FS) opener { return func(o *Options, _ *Config) { o.FS = fsys } }
func withBoot(b byte) opener    { return func(o *Options, _ *Config) { o.BootID = [16]byte{b} } }

func openStore(t testing.TB, dir string, capacity int64, opts ...opener) *Store {
	t.Helper()
	s, err := tryOpen(dir, capacity, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tryOpen(dir string, capacity int64, opts ...opener) (*Store, error) {
	o, c := testOptions(), testConfig(dir, capacity)
	for _, opt := range opts {
		opt(&o, &c)
	}
	return Open([]Config{c}, o, slog.New(slog.DiscardHandler), nil)
}

// abandon leaves a store as kill -9 does: descriptors and lock go, nothing
// is written any more.
func abandon(t testing.TB, s *Store) {
	t.Helper()
	s.closed.Store(true)
	for _, d := range s.dirs {
		if err := errors.Join(d.index.close(), d.lock.Close()); err != nil {
			t.Fatal(err)
		}
		d.closeIdle()
	}
}

// testFile is a version of a file whose bytes follow from its ID.
func testFile(path, tag string, length int64) File {
	const bs = block.DefaultBlockSize
	return testFileBlocks(path, tag, length, bs)
}

func testFileBlocks(path, tag string, length, blockSize int64) File {
	return File{
		ID:      block.DeriveFileID(1, path, tag, length, blockSize),
		MountID: 1, Path: path, Tag: tag, Length: length, BlockSize: blockSize,
	}
}

// noise is what all files are made of: random bytes of a prime length, so
// that no two pages are alike.
//

var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 1_048_573)
	rnd := newRand(0)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
})

// content fills b with the bytes of f at off.
func content(f File, b []byte, off int64) {
	table := noise()
	n := uint64(len(table))
	at := (binary.LittleEndian.Uint64(f.ID[8:])%n + uint64(off)%n) % n
	for len(b) > 0 {
		c := copy(b, table[at:])
		b, at = b[c:], 0
	}
}

func pageBytes(f File, page int64) []byte {
	e := f.Geometry().Page(page)
	b := make([]byte, e.Length)
	content(f, b, e.Offset)
	return b
}

// fillRange makes the pages that e touches present, through a handle of its
// own.
func fillRange(s *Store, f File, e block.Extent) error {
	h, err := s.Acquire(f, e)
	if err != nil {
		return err
	}
	defer h.Release()
	return fillMissing(h, f)
}

func fillMissing(h *Handle, f File) error {
	g := f.Geometry()
	for _, m := range h.Missing() {
		r, err := h.Reserve(m)
		if err != nil {
			return err
		}
		first, end := g.PageRange(m)
		for page := first; page < end; page++ {
			if _, err := r.Fill(page, pageBytes(f, page)); err != nil {
				r.Release()
				return err
			}
		}
		r.Release()
	}
	return nil
}

func fill(t testing.TB, s *Store, f File) {
	t.Helper()
	if err := fillRange(s, f, f.Geometry().Whole()); err != nil {
		t.Fatalf("fill %s: %v", f.Path, err)
	}
}

// readPages reads all pages of f that are present, checks every byte, and
// returns how many there were.
func readPages(s *Store, f File) (int, error) {
	h, err := s.Acquire(f, f.Geometry().Whole())
	if err != nil {
		return 0, err
	}
	defer h.Release()
	n := 0
	g := f.Geometry()
	for page := range g.Pages() {
		if !h.Has(page) {
			continue
		}
		e := g.Page(page)
		b := make([]byte, e.Length)
		if _, err := h.ReadAt(b, e.Offset); err != nil {
			return n, err
		}
		if !bytes.Equal(b, pageBytes(f, page)) {
			return n, errs.E(errs.Internal, "compare", f.Path, errors.New("wrong bytes were served"))
		}
		n++
	}
	return n, nil
}

func mustRead(t testing.TB, s *Store, f File, want int) {
	t.Helper()
	n, err := readPages(s, f)
	if err != nil {
		t.Fatalf("read %s: %v", f.Path, err)
	}
	if n != want {
		t.Fatalf("%s has %d pages, want %d", f.Path, n, want)
	}
}

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// fsUse is diskUse on any file system, faults apart.
func fsUse(t tester, fsys vfs.FS, name string) int64 {
	t.Helper()
	if f, ok := fsys.(*vfs.FaultyFS); ok {
		fsys = f.FS
	}
	fi, err := fsys.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	total := vfs.Allocated(fi)
	if !fi.IsDir() {
		return total
	}
	entries, err := fsys.ReadDir(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		total += fsUse(t, fsys, filepath.Join(name, e.Name()))
	}
	return total
}

// diskUse is what du says of a directory, in bytes.
func diskUse(t testing.TB, dir string) int64 {
	t.Helper()
	var total int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			if errors.Is(err, syscall.ENOENT) {
				return nil
			}
			return err
		}
		total += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

// checkLedger compares the ledgers with the disks and with the parts.
func checkLedger(t tester, s *Store) {
	t.Helper()
	var charges, replicas [maxNumbers]int64
	var cached int64
	files := 0
	for i := range s.shards {
		for _, p := range s.shards[i].parts {
			p.mu.Lock()
			if d := s.dirOf(p); d != nil {
				charges[d.num] += d.partCharge(p)
				if p.isReplica() {
					replicas[d.num] += d.replicaCharge(p)
				}
			}
			cached += p.cachedBytes()
			if p.has(partIndexed) {
				files++
			}
			p.mu.Unlock()
		}
	}
	if got := s.Stats().CachedBytes; got != cached {
		t.Fatalf("store counts %d cached bytes, its parts have %d", got, cached)
	}
	if got := s.Stats().CachedFiles; got != int64(files) {
		t.Fatalf("store counts %d cached files, there are %d", got, files)
	}
	for _, d := range s.dirs {
		if d.failure() == nil {
			checkDirLedger(t, d, charges[d.num])
			if n := d.replicas.bytes(); n != replicas[d.num] {
				t.Fatalf("%d bytes are charged for replicas, which count %d", n, replicas[d.num])
			}
		}
	}
}

func checkDirLedger(t tester, d *dir, parts int64) {
	t.Helper()
	st := d.ledger.state()
	if st.used > int64(d.cfg.Capacity) {
		t.Fatalf("ledger has %d bytes, capacity is %d", st.used, d.cfg.Capacity)
	}
	if du := fsUse(t, d.fs, d.root); du > st.used {
		t.Fatalf("disk has %d bytes, ledger %d", du, st.used)
	}
	var index int64
	for _, n := range d.indexFiles {
		index += n
	}
	var leaves int64
	for _, n := range &d.leaves.blocks {
		leaves += int64(n) * d.block
	}
	if sum := parts + index + leaves + st.held + baseCharge*d.block + st.reserved; sum != st.used {
		t.Fatalf("ledger of %s has %d bytes, the sum is %d: parts %d, index %d, directories %d, held %d, reserved %d",
			d.root, st.used, sum, parts, index, leaves, st.held, st.reserved)
	}
}

// copySparse copies the pieces of a file that are on the disk, a fourth more
// of each, so that the copy has room that no record knows.
func copySparse(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	defer func() { err = errors.Join(err, src.Close(), dst.Close()) }()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	const seekData, seekHole = 3, 4
	for off := int64(0); ; {
		start, err := src.Seek(off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		if off, err = src.Seek(start, seekHole); err != nil {
			return err
		}
		more := min((off-start)/4, fi.Size()-off)
		b := make([]byte, off-start+more)
		if _, err := src.ReadAt(b, start); err != nil {
			return err
		}
		if _, err := dst.WriteAt(b, start); err != nil {
			return err
		}
		off += more
	}
	return dst.Truncate(fi.Size())
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copySparse(path, filepath.Join(to, rel))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// quickFS is the machine's file system without syncs, which cost a test
// seconds on a busy machine and change nothing short of a power cut.
type quickFS struct{ vfs.FS }

func (q quickFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := q.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return quickFile{f}, nil
}

func (quickFS) SyncDir(string) error { return nil }

type quickFile struct{ vfs.File }

func (quickFile) Sync() error   { return nil }
func (quickFile) SyncFS() error { return nil }

func quick() vfs.FS { return quickFS{vfs.OS()} }
