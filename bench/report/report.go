package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/rig"
	"millrace/internal/size"
)

const bucket = "millrace-bench"

// settings are the command line.
type settings struct {
	millrace, barefuse string // binaries
	runs               int
	big                size.Bytes
	small              int
	dir, memory        string
	json               string
}

func parse(args []string) (*settings, error) {
	s := &settings{big: size.GiB}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.millrace, "millrace", "bin/millrace", "the binary to measure")
	flags.StringVar(&s.barefuse, "barefuse", "bin/barefuse", "the FUSE mount to compare with")
	flags.IntVar(&s.runs, "runs", 5, "interleaved runs")
	flags.TextVar(&s.big, "big", s.big, "size of the large object")
	flags.IntVar(&s.small, "small", 10000, "number of 100 KiB objects")
	flags.StringVar(&s.dir, "dir", os.TempDir(), "directory on the disk to measure; it takes four times the data")
	flags.StringVar(&s.memory, "memory", "/dev/shm", "directory on tmpfs; it takes twice the data")
	flags.StringVar(&s.json, "json", "bench/out/report.json", "where the JSON goes; empty for nowhere")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if s.runs < 1 || s.small < 100 || s.big < 64*size.MiB {
		return nil, errors.New("want at least 1 run, 100 small objects and a large one of 64 MiB")
	}
	return s, nil
}

// report is one run of the whole.
type report struct {
	*settings
	dir, memory string // our own, below those of the settings
	disk        string // where the objects are as files
	log         io.Writer

	big, small rig.Dataset
	server     *rig.Server
	bare       *rig.Bare
	ssd, cold  *rig.Roles // both cache on the disk
	mem        *rig.Roles // nil without a memory tier
	noMemory   error      // why there is none
	python     *rig.Python
	noPython   error  // why there is none
	procs      []proc // whose CPU time is measured
	wires      []*wire
	network    *rig.Network                          // nil without one
	noNetwork  error                                 // why there is none
	replay     func(run int) (hits float64, ok bool) // of eviction
	samples    map[string][]sample
	peak       map[string]int64 // bytes; the most memory of processes
}

// proc is a process whose CPU time is measured, under the name of its part.
type proc struct {
	name string
	pid  int
}

func run(ctx context.Context, args []string) (err error) {
	s, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount and to drop the kernel's caches")
	}
	r := &report{
		settings: s, log: os.Stderr,
		big: rig.Big(1, int64(s.big)), small: rig.Small(s.small, smallSize),
		samples: map[string][]sample{}, peak: map[string]int64{}, replay: epochHits,
	}
	data := r.big.Bytes() + r.small.Bytes()
	if err := haveRoom(s.dir, 4*data); err != nil {
		return err
	}
	if r.dir, err = os.MkdirTemp(s.dir, "millrace-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	if r.noMemory = haveRoom(s.memory, 2*data); r.noMemory == nil {
		if r.memory, err = os.MkdirTemp(s.memory, "millrace-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(r.memory)) }()
	}
	began := time.Now()
	if err := r.whole(ctx); err != nil {
		return err
	}
	out := r.results(began)
	out.print(os.Stdout)
	if s.json == "" {
		return nil
	}
	return out.save(s.json)
}

// haveRoom returns an error if a directory has less than n bytes free.
func haveRoom(dir string, n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < n {
		return fmt.Errorf("%s has %d MiB free, and this takes %d", dir, free>>20, n>>20)
	}
	return nil
}

// whole sets up, measures, and takes down.
func (r *report) whole(ctx context.Context) (err error) {
	if r.server, err = rig.StartServer(ctx, filepath.Join(r.dir, "s3")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.server.Stop()) }()
	r.add("s3", r.server.PID())
	r.disk = r.server.BucketDir(bucket)
	r.bare = rig.NewBare(r.server.Endpoint, bucket, bareSmall)
	if err := r.bare.CreateBucket(ctx); err != nil {
		return err
	}
	r.say("filling a bucket with %v and %d objects of 100 KiB", r.settings.big, len(r.small.Objects))
	if err := r.bare.Fill(ctx, r.big, r.small); err != nil {
		return err
	}
	bares, err := r.references(ctx)
	defer func() {
		for _, b := range bares {
			err = errors.Join(err, b.Stop())
		}
	}()
	if err != nil {
		return err
	}
	if r.python, r.noPython = rig.StartPython(); r.noPython == nil {
		defer func() { err = errors.Join(err, r.python.Stop()) }()
		r.add("python-"+reader, r.python.PID())
	}
	if r.network, r.noNetwork = rig.NewNetwork(ctx); r.noNetwork == nil {
		defer func() { err = errors.Join(err, r.network.Close()) }()
	}
	r.say("starting clusters and warming them")
	if err := r.clusters(ctx); err != nil {
		return errors.Join(err, r.stop())
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	defer func() { err = errors.Join(err, r.closeWires()) }()
	if err := r.dialAll(ctx); err != nil {
		return err
	}
	return r.measureAll(ctx)
}

// references makes what the mounts are compared with: the objects as files on
// the disk, where the S3 server has them, and on tmpfs, and bare mounts of
// both.
func (r *report) references(ctx context.Context) (all []*rig.BareMount, err error) {
	if r.memory != "" {
		for _, d := range []rig.Dataset{r.big, r.small} {
			if err := rig.CopySet(ctx, r.localMemory(), d); err != nil {
				return nil, err
			}
		}
	}
	for _, m := range []struct{ name, mode, dir string }{
		{"bare-ssd", "passthrough", r.disk},
		{"bare-copy", "copy", r.disk},
		{"bare-memory", "passthrough", r.localMemory()},
	} {
		if m.dir == "" {
			continue
		}
		b, err := rig.StartBareMount(ctx, r.barefuse, m.mode, m.dir, r.point(m.name))
		if err != nil {
			return all, err
		}
		all = append(all, b)
		r.add(m.name, b.PID())
	}
	return all, nil
}

func (r *report) localMemory() string {
	if r.memory == "" {
		return ""
	}
	return filepath.Join(r.memory, "files")
}

// point is where a mount of that name is.
func (r *report) point(name string) string { return filepath.Join(r.dir, "mounts", name) }

// clusters starts one cluster whose cache is on the disk, with a mount that
// passes through and one that copies, one whose cache is memory, and one that
// is to be cold; and reads everything once through the mounts, comparing every
// byte.
func (r *report) clusters(ctx context.Context) (err error) {
	// Room for the data, and as much for what is freed and not gone yet.
	room := size.Bytes(2*(r.big.Bytes()+r.small.Bytes()) + int64(size.GiB))
	host := ""
	if r.network != nil {
		host = r.network.Here
	}
	cluster := func(name, dir, medium string) (*rig.Roles, error) {
		c, err := rig.StartRoles(ctx, rig.RolesConfig{
			Binary: r.millrace, URI: "s3://" + bucket, Dir: filepath.Join(r.dir, name),
			Cache: fmt.Sprintf("%s:%v:%s", filepath.Join(dir, name+"-cache"), room, medium),
			Env:   append(r.server.Env(), clusterSettings()...), Stderr: r.log,
			Host:    host,
			Options: []string{"freshness=never"}, // as of a training set: nobody changes it
		})
		if err != nil {
			return nil, err
		}
		r.add(name+"-master", c.Master.PID())
		r.add(name+"-worker", c.Worker.PID())
		return c, nil
	}
	type mount struct {
		cluster       *rig.Roles
		name, options string
	}
	if r.ssd, err = cluster("ssd", r.dir, "ssd"); err != nil {
		return err
	}
	if r.cold, err = cluster("cold", r.dir, "ssd"); err != nil {
		return err
	}
	mounts := []mount{{r.ssd, "ssd", ""}, {r.ssd, "copy", "passthrough=off"}, {r.ssd, "no-open", "no_open"}}
	if r.memory != "" {
		if r.mem, err = cluster("memory", r.memory, "memory"); err != nil {
			return err
		}
		mounts = append(mounts, mount{r.mem, "memory", ""})
	}
	for _, m := range mounts {
		role, err := m.cluster.Mount(ctx, r.point(m.name), m.options)
		if err != nil {
			return err
		}
		r.add(m.name+"-mount", role.PID())
		for _, d := range []rig.Dataset{r.big, r.small} {
			if err := rig.ReadFiles(ctx, rig.Dir(r.point(m.name)), d, smallReaders, true); err != nil {
				return fmt.Errorf("comparing bytes through the mount %s: %w", m.name, err)
			}
		}
	}
	return nil
}

// clusterSettings are those in which the clusters differ from the defaults.
func clusterSettings() []string {
	return []string{
		// The default where the limit on open files is what systemd sets.
		"MILLRACE_CLIENT_DESCRIPTORS=16384",
		// A busy disk takes its time to free all small files in one call.
		"MILLRACE_MASTER_WORKER_TIMEOUT=2m",
	}
}

func (r *report) stop() (err error) {
	for _, c := range []*rig.Roles{r.ssd, r.cold, r.mem} {
		if c != nil {
			err = errors.Join(err, c.Stop())
		}
	}
	return err
}

func (r *report) add(name string, pid int) { r.procs = append(r.procs, proc{name, pid}) }

func (r *report) say(format string, args ...any) { fmt.Fprintf(r.log, format+"\n", args...) }
