package vfs

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Rule says which operations fail, and how. Its text form is
//
//	OP[,OP...] [path~SUBSTRING] [nth=N | from=N] [short=BYTES] err=NAME
//
// OP is open, mkdir, rename, remove, readdir, stat, syncdir, statfs, read,
// write, close, truncate, sync, syncfs, fallocate, punch, lock, lease,
// unlease, or any. Of the operations that match, nth picks the Nth alone
// (from 1), from the Nth and all after it; neither means all. short lets a
// write put that many bytes down before it fails. NAME is an errno such as
// EIO, ENOSPC, EROFS, or shared, the refusal of a lease.
type Rule struct {
	Ops   []string
	Path  string
	Nth   int
	From  int
	Short int
	Err   string
}

//nolint:gochecknoglobals // constant tables
var (
	faultOps = []string{
		"any", "open", "mkdir", "rename", "remove", "readdir", "stat", "syncdir", "statfs", "read", "write",
		"close", "truncate", "sync", "syncfs", "fallocate", "punch", "lock", "lease", "unlease",
	}
	faultErrs = map[string]error{
		"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "EROFS": syscall.EROFS, "ENOENT": syscall.ENOENT,
		"EACCES": syscall.EACCES, "EMFILE": syscall.EMFILE, "EDQUOT": syscall.EDQUOT,
		"EOPNOTSUPP": syscall.EOPNOTSUPP, "EINVAL": syscall.EINVAL, "shared": ErrShared,
	}
)

// ParseRule reads the text form of a rule.
func ParseRule(s string) (Rule, error) {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return Rule{}, fmt.Errorf("fault rule %q is empty", s)
	}
	r := Rule{Ops: strings.Split(fields[0], ",")}
	for _, op := range r.Ops {
		if !slices.Contains(faultOps, op) {
			return Rule{}, fmt.Errorf("fault rule %q: no operation %q", s, op)
		}
	}
	for _, f := range fields[1:] {
		if path, ok := strings.CutPrefix(f, "path~"); ok {
			r.Path = path
			continue
		}
		key, value, _ := strings.Cut(f, "=")
		var err error
		switch key {
		case "nth":
			r.Nth, err = strconv.Atoi(value)
		case "from":
			r.From, err = strconv.Atoi(value)
		case "short":
			r.Short, err = strconv.Atoi(value)
		case "err":
			r.Err = value
		default:
			err = fmt.Errorf("no key %q", key)
		}
		if err != nil {
			return Rule{}, fmt.Errorf("fault rule %q: %w", s, err)
		}
	}
	if _, ok := faultErrs[r.Err]; !ok {
		return Rule{}, fmt.Errorf("fault rule %q: no error %q", s, r.Err)
	}
	return r, nil
}

// String returns what ParseRule reads.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(strings.Join(r.Ops, ","))
	if r.Path != "" {
		b.WriteString(" path~" + r.Path)
	}
	for _, f := range []struct {
		key   string
		value int
	}{{"nth", r.Nth}, {"from", r.From}, {"short", r.Short}} {
		if f.value != 0 {
			fmt.Fprintf(&b, " %s=%d", f.key, f.value)
		}
	}
	b.WriteString(" err=" + r.Err)
	return b.String()
}

// FaultyFS is an FS that fails by rules. Rules may change at any time.
type FaultyFS struct {
	FS

	mu    sync.Mutex
	rules []activeRule
}

type activeRule struct {
	Rule

	matched, fired int
}

// Faulty wraps fsys so that operations fail by rules.
func Faulty(fsys FS, rules ...Rule) *FaultyFS {
	f := &FaultyFS{FS: fsys}
	f.Set(rules...)
	return f
}

// Set replaces the rules, and starts their counts anew. No rules: no faults.
func (f *FaultyFS) Set(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = f.rules[:0:0]
	for _, r := range rules {
		f.rules = append(f.rules, activeRule{Rule: r})
	}
}

// Fired returns how many operations have failed since the last Set.
func (f *FaultyFS) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for i := range f.rules {
		n += f.rules[i].fired
	}
	return n
}

// check returns the rule by which this operation fails.
func (f *FaultyFS) check(op, path string) (short int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.rules {
		r := &f.rules[i]
		if !slices.Contains(r.Ops, op) && !slices.Contains(r.Ops, "any") || !strings.Contains(path, r.Path) {
			continue
		}
		r.matched++
		if r.Nth != 0 && r.matched != r.Nth || r.matched < r.From {
			continue
		}
		r.fired++
		return r.Short, &fs.PathError{Op: op, Path: path, Err: faultErrs[r.Err]}
	}
	return 0, nil
}

func (f *FaultyFS) fail(op, path string) error {
	_, err := f.check(op, path)
	return err
}

// OpenFile is op "open".
func (f *FaultyFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if err := f.fail("open", name); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{File: file, fs: f, name: name}, nil
}

// MkdirAll is op "mkdir".
func (f *FaultyFS) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.fail("mkdir", name); err != nil {
		return err
	}
	return f.FS.MkdirAll(name, perm)
}

// Rename is op "rename"; its path is the old name.
func (f *FaultyFS) Rename(oldName, newName string) error {
	if err := f.fail("rename", oldName); err != nil {
		return err
	}
	return f.FS.Rename(oldName, newName)
}

// Remove is op "remove".
func (f *FaultyFS) Remove(name string) error {
	if err := f.fail("remove", name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// ReadDir is op "readdir".
func (f *FaultyFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.fail("readdir", name); err != nil {
		return nil, err
	}
	return f.FS.ReadDir(name)
}

// Stat is op "stat".
func (f *FaultyFS) Stat(name string) (fs.FileInfo, error) {
	if err := f.fail("stat", name); err != nil {
		return nil, err
	}
	return f.FS.Stat(name)
}

// SyncDir is op "syncdir".
func (f *FaultyFS) SyncDir(name string) error {
	if err := f.fail("syncdir", name); err != nil {
		return err
	}
	return f.FS.SyncDir(name)
}

// Spread is op "spread".
func (f *FaultyFS) Spread(name string) error {
	if err := f.fail("spread", name); err != nil {
		return err
	}
	return f.FS.Spread(name)
}

// Statfs is op "statfs".
func (f *FaultyFS) Statfs(name string) (Room, error) {
	if err := f.fail("statfs", name); err != nil {
		return Room{}, err
	}
	return f.FS.Statfs(name)
}

type faultyFile struct {
	File

	fs   *FaultyFS
	name string
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.fail("read", f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if short, err := f.fs.check("write", f.name); err != nil {
		n, _ := f.File.WriteAt(p[:min(short, len(p))], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

// Close always closes, also when a rule makes it say that it failed.
func (f *faultyFile) Close() error {
	err := f.File.Close()
	if e := f.fs.fail("close", f.name); e != nil {
		return e
	}
	return err
}

func (f *faultyFile) Truncate(size int64) error {
	return f.do("truncate", func() error { return f.File.Truncate(size) })
}
func (f *faultyFile) Sync() error    { return f.do("sync", f.File.Sync) }
func (f *faultyFile) SyncFS() error  { return f.do("syncfs", f.File.SyncFS) }
func (f *faultyFile) Lock() error    { return f.do("lock", f.File.Lock) }
func (f *faultyFile) Lease() error   { return f.do("lease", f.File.Lease) }
func (f *faultyFile) Unlease() error { return f.do("unlease", f.File.Unlease) }

func (f *faultyFile) Fallocate(off, n int64) error {
	return f.do("fallocate", func() error { return f.File.Fallocate(off, n) })
}

func (f *faultyFile) PunchHole(off, n int64) error {
	return f.do("punch", func() error { return f.File.PunchHole(off, n) })
}

func (f *faultyFile) do(op string, fn func() error) error {
	if err := f.fs.fail(op, f.name); err != nil {
		return err
	}
	return fn()
}
