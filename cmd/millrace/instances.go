package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/google/renameio/v2"

	"millrace/cachemaster"
	"millrace/internal/config"
	"millrace/internal/daemon"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// The roles that `up` runs as processes of their own.
const (
	roleMaster = "master"
	roleWorker = "worker"
)

const (
	// portStride is how far the ports of one instance are from those of the
	// next one of its role.
	portStride = 100
	// maxInstances bounds the workers of one `up`.
	maxInstances = 64
)

// instance is one master or worker that `up` runs as a process of its own.
type instance struct {
	// Name is the role and a number: "worker-1".
	Name string `json:"name"`
	Role string `json:"role"`
	// Addresses are where it listens, by the names of addresses.json. They stay
	// those of the first start: the masters know each other by them.
	Addresses map[string]string `json:"addresses"`
}

// layout is which instances a data directory has, kept in instances.json.
type layout struct {
	Instances []instance `json:"instances"`
}

func layoutFile(dataDir string) string { return filepath.Join(dataDir, "instances.json") }

// readLayout returns an empty layout where there is none.
func readLayout(dataDir string) (l layout, err error) {
	name := layoutFile(dataDir)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, errs.Wrap(err, "read", name)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, errs.E(errs.Corrupt, "read", name, err)
	}
	return l, nil
}

func (l layout) write(dataDir string) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return errs.Wrap(err, "encode instances of", dataDir)
	}
	name := layoutFile(dataDir)
	return errs.Wrap(renameio.WriteFile(name, append(b, '\n'), 0o600), "write", name)
}

// of returns the instances of a role, in the order of their numbers.
func (l layout) of(role string) []instance {
	return slices.DeleteFunc(slices.Clone(l.Instances), func(i instance) bool { return i.Role != role })
}

// masters returns the masters' gRPC addresses.
func (l layout) masters() []string {
	var list []string
	for _, m := range l.of(roleMaster) {
		list = append(list, m.Addresses["grpc"])
	}
	return list
}

// instances decides which instances there are: those of the flags, and of an
// earlier start. None means that all roles share this process.
func (p *plan) instances(s *Settings) error {
	kept, err := readLayout(p.dataDir)
	if err != nil {
		return err
	}
	masters, workers := len(kept.of(roleMaster)), len(kept.of(roleWorker))
	if p.numMasters == 0 && p.numWorkers == 0 && masters == 0 {
		return nil
	}
	switch {
	case masters == 0:
		masters, workers = 1, 1
		if _, err := os.Stat(filepath.Join(p.dataDir, "master")); err == nil {
			return errs.E(errs.Exists, "use data directory", p.dataDir, errors.New("it belongs to a master and a worker in one process")).
				WithHint("leave --num-masters and --num-workers out, or choose another with --data-dir")
		}
	case p.numMasters != 0 && p.numMasters != masters:
		return errs.E(errs.Exists, "use data directory", p.dataDir, fmt.Errorf("it has %d masters, not %d", masters, p.numMasters)).
			WithHint("leave --num-masters out, or choose another with --data-dir")
	case p.numWorkers != 0 && p.numWorkers < workers:
		return errs.E(errs.Exists, "use data directory", p.dataDir, fmt.Errorf("it has %d workers, not %d", workers, p.numWorkers)).
			WithHint("give as many, or more")
	}
	if p.numMasters > 0 {
		masters = p.numMasters
	}
	workers = max(workers, p.numWorkers)
	p.layout = layout{}
	for _, r := range []struct {
		role    string
		n       int
		listens map[string]string
	}{
		{roleMaster, masters, map[string]string{"grpc": s.Master.Listen, "raft": s.Master.RaftListen, "http": s.Master.HTTPListen}},
		{roleWorker, workers, map[string]string{"grpc": s.Worker.Listen, "data": s.Worker.DataListen, "http": s.Worker.HTTPListen}},
	} {
		for i := range r.n {
			in, err := newInstance(r.role, i, r.listens)
			if err != nil {
				return err
			}
			if err := in.keep(kept); err != nil {
				return err
			}
			p.layout.Instances = append(p.layout.Instances, in)
		}
	}
	return nil
}

// newInstance puts an instance's ports behind those of the ones before it.
func newInstance(role string, number int, listens map[string]string) (instance, error) {
	in := instance{Name: fmt.Sprintf("%s-%d", role, number), Role: role, Addresses: map[string]string{}}
	for name, address := range listens {
		host, text, err := net.SplitHostPort(address)
		if err != nil {
			return in, err
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return in, usagef("the port of %s: %w", address, err)
		}
		if port != 0 {
			port += uint64(number * portStride)
		}
		in.Addresses[name] = net.JoinHostPort(host, strconv.FormatUint(port, 10))
	}
	return in, nil
}

// keep takes over the addresses of an earlier start.
func (in *instance) keep(kept layout) error {
	i := slices.IndexFunc(kept.Instances, func(k instance) bool { return k.Name == in.Name })
	if i < 0 {
		return nil
	}
	for name, was := range kept.Instances[i].Addresses {
		now := in.Addresses[name]
		if _, port, err := net.SplitHostPort(now); err == nil && port != "0" && now != was {
			return errs.E(errs.Exists, "use "+in.Name, was, fmt.Errorf("it listens there since its first start, not on %s", now)).
				WithHint("the addresses of several instances stay: give none, or those, or --random-ports")
		}
		in.Addresses[name] = was
	}
	return nil
}

// claim opens every listener of every instance, so that what is in use is told
// before anything starts, and closes them again for the instances. Ports that
// the system chose are entered. It takes the lock of every directory, likewise.
func (l layout) claim(ctx context.Context, dataDir string) (err error) {
	var open []func() error
	defer func() {
		for _, c := range open {
			err = errors.Join(err, c())
		}
	}()
	for _, in := range l.Instances {
		dir := filepath.Join(dataDir, in.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return errs.Wrap(err, "make data directory", dir)
		}
		lock, err := daemon.LockDir(dir, "--data-dir")
		if err != nil {
			return err
		}
		open = append(open, lock.Close)
		for _, name := range slices.Sorted(maps.Keys(in.Addresses)) {
			listener, err := daemon.Listen(ctx, daemon.Endpoint{
				What: "the " + name + " service of " + in.Name, Network: "tcp", Address: in.Addresses[name],
				Setting: "the port flags, whose ports instance n has plus " + strconv.Itoa(portStride) + "·n, or --random-ports",
			})
			if err != nil {
				return err
			}
			open = append(open, listener.Close)
			in.Addresses[name] = listener.Addr().String()
		}
	}
	return nil
}

// configure writes the configuration of an instance, which is that of `up`
// with what is its own.
func (l layout) configure(s *Settings, dataDir string, in instance) (file string, err error) {
	c := *s
	c.Cluster.Masters, c.Cluster.Instance = l.masters(), in.Name
	dir := filepath.Join(dataDir, in.Name)
	switch in.Role {
	case roleMaster:
		c.Master.DataDir, c.Master.ID = dir, in.Name
		c.Master.Listen, c.Master.RaftListen, c.Master.HTTPListen = in.Addresses["grpc"], in.Addresses["raft"], in.Addresses["http"]
		c.Master.Voters = nil
		for _, m := range l.of(roleMaster) {
			c.Master.Voters = append(c.Master.Voters, cachemaster.Voter{ID: m.Name, Raft: m.Addresses["raft"]})
		}
	case roleWorker:
		c.Worker.DataDir, c.Worker.UnixSocket = dir, ""
		c.Worker.Listen, c.Worker.DataListen, c.Worker.HTTPListen = in.Addresses["grpc"], in.Addresses["data"], in.Addresses["http"]
		share := size.Bytes(len(l.of(roleWorker)))
		c.Worker.Memory /= share
		if c.Worker.MemoryDir != "" {
			c.Worker.MemoryDir = filepath.Join(c.Worker.MemoryDir, in.Name)
		}
		c.Worker.Tiers = slices.Clone(s.Worker.Tiers)
		for i := range c.Worker.Tiers {
			t := &c.Worker.Tiers[i]
			t.Dir, t.Capacity = filepath.Join(t.Dir, in.Name), t.Capacity/share
			if err := os.MkdirAll(t.Dir, 0o700); err != nil {
				return "", errs.Wrap(err, "make cache directory", t.Dir)
			}
		}
	}
	if err := c.Validate(); err != nil {
		return "", errs.E(errs.Invalid, "configure", in.Name, err)
	}
	file = filepath.Join(dir, "config.toml")
	f, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o600))
	if err != nil {
		return "", errs.Wrap(err, "write", file)
	}
	defer func() { _ = f.Cleanup() }()
	if err := config.WriteValues(f, &c); err != nil {
		return "", errs.Wrap(err, "write", file)
	}
	return file, errs.Wrap(f.CloseAtomicallyReplace(), "write", file)
}
