package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"millrace/bench/rig"
	"millrace/internal/testenv"
)

const bucket = "names"

// Sizes of what is listed.
const (
	treeDirs = 100
	dirFiles = 1000
	flat     = 1_000_000
	looks    = 10_000
)

// tree is treeDirs directories of dirFiles files each, and beside it one
// directory of flat files.
type tree struct {
	folders, flat testenv.NumberedKeys
}

func newTree() *tree {
	return &tree{
		folders: testenv.NumberedKeys{N: treeDirs * dirFiles, Size: 100 << 10},
		flat:    testenv.NumberedKeys{Prefix: "flat/image-", N: flat, Size: 100 << 10},
	}
}

func (t *tree) Len() int { return t.flat.Len() + t.folders.Len() }

func (t *tree) Key(i int) string {
	if i < t.flat.N {
		return t.flat.Key(i)
	}
	i -= t.flat.N
	return fmt.Sprintf("tree/part-%05d/image-%08d.jpeg", i/dirFiles, i%dirFiles)
}

func (t *tree) Object(i int) testenv.MemoryObject {
	if i < t.flat.N {
		return t.flat.Object(i)
	}
	return t.folders.Object(i - t.flat.N)
}

type bench struct {
	s3    *testenv.MemoryS3
	roles *rig.Roles
	mount *rig.Role
	point string
	local string // a directory of looks files
	prof  string // where profiles go; empty: nowhere
	out   *tabwriter.Writer
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("metadata", flag.ContinueOnError)
	binary := flags.String("millrace", "bin/millrace", "the binary to measure")
	scratch := flags.String("dir", "", "for data, mount point and the local files; default: a directory in the system's temporary one")
	profiles := flags.String("profiles", "", "write CPU profiles of master and mount of each phase here")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*scratch, "millrace-metadata-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it holds nothing that anybody wants
	b := &bench{
		s3: testenv.NewMemoryS3(), point: filepath.Join(dir, "mnt"), local: filepath.Join(dir, "local"),
		prof: *profiles, out: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight),
	}
	b.s3.SetBucket(bucket, newTree())
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: b.s3, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // ends with Close
	defer server.Close()
	if err := b.makeLocal(); err != nil {
		return err
	}
	b.roles, err = rig.StartRoles(ctx, rig.RolesConfig{
		Binary: *binary, Dir: filepath.Join(dir, "data"), Cache: filepath.Join(dir, "cache") + ":1GiB", Stderr: os.Stderr,
		URI:     "s3://" + bucket,
		Options: []string{"freshness=never", "endpoint=http://" + l.Addr().String(), "anonymous=true", "region=us-east-1"},
	})
	if err != nil {
		return err
	}
	if b.mount, err = b.roles.Mount(ctx, b.point, ""); err == nil {
		err = b.phases(ctx)
	}
	return errors.Join(err, b.roles.Stop(), b.out.Flush())
}

// makeLocal makes the files that the mount's are compared with.
func (b *bench) makeLocal() error {
	for i := range looks {
		name := b.file(b.local, i)
		if i%dirFiles == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return err
			}
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) file(root string, i int) string {
	return filepath.Join(root, fmt.Sprintf("tree/part-%05d/image-%08d.jpeg", i/dirFiles, i%dirFiles))
}

func (b *bench) phases(ctx context.Context) error {
	fmt.Fprintln(b.out, "\tentries\tseconds\tentries/s\tmaster µs\tmount µs\tprogram µs\tlists\tmaster MiB\tmount MiB\t")
	find := func(dir string) func() error {
		return func() error { return b.exec(ctx, "find", filepath.Join(b.point, dir), "-ls") }
	}
	const (
		names = "2" // names and attributes
		all   = "3" // and pages
	)
	const inTree = treeDirs*dirFiles + treeDirs + 1
	for _, p := range []struct {
		name    string
		entries int
		drop    string // what the kernel forgets before, as /proc/sys/vm/drop_caches has it
		work    func() error
	}{
		{"find -ls, tree, cold", inTree, names, find("tree")},
		{"find -ls, tree, warm", inTree, "", find("tree")},
		{"find -ls, tree, names dropped", inTree, names, find("tree")},
		{"stat by name, names dropped", looks, names, func() error { return b.stat(b.point) }},
		{"stat by name, local, names dropped", looks, names, func() error { return b.stat(b.local) }},
		{"list and stat, names dropped", looks, names, func() error { return b.walk(b.point) }},
		{"list and stat, local, names dropped", looks, names, func() error { return b.walk(b.local) }},
		{"list and stat, all dropped", looks, all, func() error { return b.walk(b.point) }},
		{"list and stat, local, all dropped", looks, all, func() error { return b.walk(b.local) }},
		{"open+close, names dropped", looks, names, func() error { return b.open(b.point) }},
		{"open+close", looks, "", func() error { return b.open(b.point) }},
		{"find -ls, one directory, cold", flat + 1, names, find("flat")},
		{"find -ls, one directory, again", flat + 1, "", find("flat")},
		{"ls -f, one directory, again", flat + 1, "", func() error { return b.exec(ctx, "ls", "-f", filepath.Join(b.point, "flat")) }},
	} {
		if p.drop != "" {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte(p.drop), 0o600); err != nil {
				return err
			}
		}
		if err := b.phase(ctx, p.name, p.entries, p.work); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// phase does some work on so many entries and prints what it took.
func (b *bench) phase(ctx context.Context, name string, entries int, work func() error) error {
	stop := b.profile(ctx, name)
	defer stop()
	before, err := b.usage()
	if err != nil {
		return err
	}
	lists, start := b.s3.Lists(), time.Now()
	if err := work(); err != nil {
		return err
	}
	wall := time.Since(start)
	after, err := b.usage()
	if err != nil {
		return err
	}
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(entries) }
	fmt.Fprintf(b.out, "%s\t%d\t%.2f\t%.0f\t%.1f\t%.1f\t%.1f\t%d\t%d\t%d\t\n", name, entries, wall.Seconds(), float64(entries)/wall.Seconds(),
		each(after.master-before.master), each(after.mount-before.mount), each(after.program-before.program), b.s3.Lists()-lists,
		after.masterRSS>>20, after.mountRSS>>20)
	return b.out.Flush()
}

// usage is what the processes have used.
type usage struct {
	master, mount, program time.Duration // CPU
	masterRSS, mountRSS    int64         // largest so far, in bytes
}

func (b *bench) usage() (u usage, err error) {
	for _, p := range []struct {
		role *rig.Role
		cpu  *time.Duration
		rss  *int64
	}{{b.roles.Master, &u.master, &u.masterRSS}, {b.mount, &u.mount, &u.mountRSS}} {
		if *p.cpu, err = rig.CPU(p.role.PID()); err != nil {
			return u, err
		}
		if *p.rss, err = peakMemory(p.role.PID()); err != nil {
			return u, err
		}
	}
	// What this process does between the moments is a child's work or its own
	// system calls on one thread; the S3 server's is told apart by neither.
	var children syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children); err != nil {
		return u, err
	}
	u.program = time.Duration(children.Utime.Nano() + children.Stime.Nano())
	return u, nil
}

// peakMemory returns the largest resident size of a process so far, in bytes.
func peakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

func (b *bench) exec(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

func (b *bench) stat(root string) error {
	for i := range looks {
		if _, err := os.Lstat(b.file(root, i)); err != nil {
			return err
		}
	}
	return nil
}

// walk lists directories and looks at each of their files, as os.walk and the
// like do.
func (b *bench) walk(root string) error {
	for d := range looks / dirFiles {
		dir := filepath.Dir(b.file(root, d*dirFiles))
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(-1)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) open(root string) error {
	for i := range looks {
		f, err := os.Open(b.file(root, i))
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// profile takes CPU profiles of master and mount until the function that it
// returns is called.
func (b *bench) profile(ctx context.Context, name string) (stop func()) {
	if b.prof == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 2)
	name = strings.NewReplacer(" ", "-", ",", "").Replace(name)
	for role, addr := range map[string]string{"master": b.roles.Master.Address("http"), "mount": b.mount.Address("http")} {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := fetch(ctx, "http://"+addr+"/debug/pprof/profile?seconds=5", filepath.Join(b.prof, name+"."+role)); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
			}
		}()
	}
	return func() {
		<-done
		<-done
		cancel()
	}
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
