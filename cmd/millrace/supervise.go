package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"millrace/internal/child"
	"millrace/internal/daemon"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/wait"
	"millrace/tier"
)

const (
	// The waits before an instance that ended by itself is started again: from
	// the first to the last, doubled each time.
	firstRestart = 500 * time.Millisecond
	lastRestart  = 30 * time.Second
	// steadyAfter is after what time an instance that ends is no repetition.
	steadyAfter = time.Minute
	// instancePatience bounds the stop of an instance.
	instancePatience = 30 * time.Second
	// maxLogLine bounds a line of an instance's log, in bytes; a longer one is
	// broken.
	maxLogLine = 64 << 10
)

// limits are what each instance may take. Zero: no limit.
type limits struct {
	memory size.Bytes
	cpus   float64
}

// environ returns the environment of an instance. Settings come through its
// configuration alone.
func (l limits) environ(own []string, memoryTier size.Bytes) []string {
	env := slices.DeleteFunc(slices.Clone(own), func(kv string) bool { return strings.HasPrefix(kv, envPrefix+"_") })
	if l.memory > 0 {
		// What lies on a tmpfs counts as the instance's memory, too.
		heap := heapLimit(int64(l.memory), []tier.Config{{Medium: tier.Memory, Capacity: memoryTier}})
		env = append(env, "GOMEMLIMIT="+strconv.FormatInt(heap, 10))
	}
	if l.cpus > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(int(math.Ceil(l.cpus))))
	}
	return env
}

// supervised is an instance's process, which is started again when it ends by
// itself.
type supervised struct {
	instance
	file    string // its configuration
	exe     string
	environ []string
	logs    io.Writer
	log     *slog.Logger
	limits  limits
	groups  *daemon.Cgroups // nil: none can be had, or none is needed

	proven atomic.Bool // it was ready once
}

// run runs the process until ctx ends. One that ends before it was ready once
// is a failure: it would again.
func (s *supervised) run(ctx context.Context) error {
	pause := firstRestart
	for {
		began := time.Now()
		p, err := s.start() //nolint:contextcheck // the process outlives ctx, until it has ended cleanly
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return p.Terminate(instancePatience)
		case <-p.Done():
		}
		if !s.proven.Load() {
			return p.Ended()
		}
		if time.Since(began) > steadyAfter {
			pause = firstRestart
		}
		s.log.WarnContext(ctx, "an instance ended by itself and is started again", "instance", s.Name, "error", p.Ended(), "after", pause)
		if wait.For(ctx, pause) != nil {
			return nil //nolint:nilerr // it was stopped while it waited
		}
		pause = min(2*pause, lastRestart)
	}
}

func (s *supervised) start() (*child.Process, error) {
	cmd := exec.CommandContext(context.Background(), s.exe, s.Role, "--config", s.file)
	cmd.Args[0] = "millrace" // not the name that this process may have been called by
	cmd.Env = s.environ
	cmd.Stdout, cmd.Stderr = s.logs, s.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if s.groups != nil {
		attr, f, err := s.groups.Make(s.Name, int64(s.limits.memory), s.limits.cpus)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		cmd.SysProcAttr = attr
	}
	// Should this process be killed, its instances end cleanly.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	p, err := child.Start(cmd)
	return p, errs.Wrap(err, "start", s.Name)
}

// cgroups returns where groups for the instances are made, nil where that
// cannot be: then the limits hold as far as the Go runtime keeps them.
func (l limits) cgroups(ctx context.Context, log *slog.Logger) *daemon.Cgroups {
	if l == (limits{}) {
		return nil
	}
	groups, err := daemon.OwnCgroups()
	if err != nil {
		log.InfoContext(ctx, "there are no control groups for the instances: GOMEMLIMIT and GOMAXPROCS alone hold their limits", "reason", err)
		return nil
	}
	return groups
}

// ready returns nil when the instance says that it is ready.
func (s *supervised) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addresses["http"]+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(text)))
	}
	s.proven.Store(true)
	return nil
}

// prefixed writes lines with a prefix to where several write.
type prefixed struct {
	to     *sync.Mutex // held while writing to w
	w      io.Writer
	prefix string

	part []byte // of a line that has not ended
}

// Write implements io.Writer, for one goroutine at a time.
func (p *prefixed) Write(b []byte) (int, error) {
	p.part = append(p.part, b...)
	for {
		end := bytes.IndexByte(p.part, '\n')
		switch {
		case end >= 0:
		case len(p.part) >= maxLogLine:
			end = len(p.part)
		default:
			return len(b), nil
		}
		line := p.part[:end]
		p.to.Lock()
		_, err := fmt.Fprintf(p.w, "%s %s\n", p.prefix, line)
		p.to.Unlock()
		p.part = p.part[min(end+1, len(p.part)):]
		if err != nil {
			return len(b), err
		}
	}
}

// startMany runs the masters and workers as processes of their own, and the
// mount in this one.
func (a *app) startMany(ctx context.Context, n *node, p *plan, t *trail) error {
	if err := n.lock(p.dataDir, "--data-dir"); err != nil {
		t.keep() // whoever holds it made what is there
		return err
	}
	spec := mountSpec{point: p.mountPoint, root: "/"}
	if p.mountPoint != "" {
		if err := n.readyMountPoint(ctx, p, t); err != nil {
			return err
		}
		var err error
		if spec.http, err = n.listenMount(ctx); err != nil {
			return err
		}
	}
	if err := p.layout.claim(ctx, p.dataDir); err != nil {
		return err
	}
	if err := p.layout.write(p.dataDir); err != nil {
		return err
	}
	spec.masters = p.layout.masters()
	for _, in := range p.layout.Instances {
		for name, address := range in.Addresses {
			n.addresses.Set(in.Name, name, address)
		}
	}
	if err := n.addresses.Write(p.dataDir); err != nil {
		return err
	}
	groups := p.limits.cgroups(ctx, n.log)
	for _, role := range []string{roleMaster, roleWorker} {
		if err := a.startInstances(ctx, n, p, role, groups); err != nil {
			return err
		}
	}
	if err := n.bind(ctx, p, spec.masters, func(context.Context) error { return nil }); err != nil {
		return err
	}
	return a.finishStart(ctx, n, p, t, spec, p.layout.Instances[0].Addresses["http"])
}

// startInstances starts the instances of a role and waits until all are ready.
func (a *app) startInstances(ctx context.Context, n *node, p *plan, role string, groups *daemon.Cgroups) error {
	exe, err := os.Executable()
	if err != nil {
		return errs.Wrap(err, "find the program", "")
	}
	var all []*supervised
	for _, in := range p.layout.of(role) {
		file, err := p.layout.configure(n.settings, p.dataDir, in)
		if err != nil {
			return err
		}
		var memory size.Bytes
		if role == roleWorker {
			memory = n.settings.Worker.Memory / size.Bytes(len(p.layout.of(role)))
		}
		s := &supervised{
			instance: in, file: file, exe: exe, environ: p.limits.environ(os.Environ(), memory), log: n.log,
			logs: &prefixed{to: &a.logging, w: a.stderr, prefix: in.Name}, limits: p.limits, groups: groups,
		}
		n.group.Start(ctx, in.Name, s.run)
		all = append(all, s)
	}
	for _, s := range all {
		if err := n.waitReady(ctx, s.Name, s.ready); err != nil {
			return err
		}
	}
	return nil
}
