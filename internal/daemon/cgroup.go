package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"millrace/internal/errs"
)

// cpuPeriod is over which time a group's share of the CPUs is counted, in
// microseconds.
const cpuPeriod = 100_000

// Cgroups makes control groups (version 2) for children of this process, below
// its own group.
type Cgroups struct{ dir string }

// OwnCgroups returns the groups below that of this process, if it may make any.
// To that end the process moves into a group of its own, "supervisor", since
// only leaves hold processes. errs.Unsupported says that there are none here.
func OwnCgroups() (*Cgroups, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, errs.Wrap(err, "read", "/proc/self/cgroup")
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return cgroupsAt(filepath.Join("/sys/fs/cgroup", path))
		}
	}
	return nil, errs.E(errs.Unsupported, "use control groups", "", errors.New("this process is in none of version 2"))
}

func cgroupsAt(dir string) (*Cgroups, error) {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.E(errs.Unsupported, "use control groups", dir, errors.New("there are none of version 2"))
	}
	if err != nil {
		return nil, errs.Wrap(err, "read controllers of", dir)
	}
	for _, c := range []string{"memory", "cpu"} {
		if !strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+c+" ") {
			return nil, errs.E(errs.Unsupported, "use control groups", dir, fmt.Errorf("the controller %q was not delegated", c))
		}
	}
	g := &Cgroups{dir: dir}
	if err := g.enter("supervisor"); err != nil {
		return nil, err
	}
	if err := g.set("", "cgroup.subtree_control", "+memory +cpu"); err != nil {
		return nil, errors.Join(err, g.set("", "cgroup.procs", strconv.Itoa(os.Getpid())))
	}
	return g, nil
}

// enter moves this process into a group.
func (g *Cgroups) enter(name string) error {
	if err := os.MkdirAll(filepath.Join(g.dir, name), 0o755); err != nil {
		return errs.Wrap(err, "make control group", name)
	}
	return g.set(name, "cgroup.procs", strconv.Itoa(os.Getpid()))
}

func (g *Cgroups) set(name, file, value string) error {
	path := filepath.Join(g.dir, name, file)
	return errs.Wrap(os.WriteFile(path, []byte(value), 0o644), "write "+value+" to", path)
}

// Make makes a group, or finds it, with bounds: bytes of memory and a number of
// CPUs, 0 for no bound. The process attributes that it returns start a child in
// it; the file must stay open until then.
func (g *Cgroups) Make(name string, memory int64, cpus float64) (*syscall.SysProcAttr, *os.File, error) {
	dir := filepath.Join(g.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, errs.Wrap(err, "make control group", name)
	}
	memoryMax, cpuMax := "max", "max"
	if memory > 0 {
		memoryMax = strconv.FormatInt(memory, 10)
	}
	if cpus > 0 {
		cpuMax = strconv.Itoa(int(cpus * cpuPeriod))
	}
	err := errors.Join(g.set(name, "memory.max", memoryMax), g.set(name, "cpu.max", fmt.Sprintf("%s %d", cpuMax, cpuPeriod)))
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, nil, errs.Wrap(err, "open control group", dir)
	}
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}, f, nil
}
