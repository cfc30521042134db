package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"millrace/cachemaster"
	"millrace/cacheworker"
	"millrace/client"
	"millrace/fuse"
	"millrace/internal/config"
	"millrace/internal/size"
	"millrace/tier"
)

// Settings is the whole configuration: the sections of all roles.
type Settings struct {
	// What all roles and tools share.
	Cluster Cluster `toml:"cluster"`
	// A master: it keeps what cannot be rebuilt and says who is there.
	Master Master `toml:"master"`
	// A worker: it keeps and serves cached data.
	Worker Worker `toml:"worker"`
	// What reads: mounts, tools, and programs that use the Go SDK.
	Client client.Config `toml:"client"`
	// A FUSE mount.
	FUSE FUSE `toml:"fuse"`
}

// maxHostID bounds the name of a host, in bytes.
const maxHostID = 256

// Cluster is the section [cluster].
type Cluster struct {
	// Masters are the gRPC addresses of the masters, HOST:PORT. The
	// environment variable MILLRACE_MASTERS is another name of this key.
	Masters []string `toml:"masters"`
	// Instance is a name of this process that its metrics carry as the label
	// millrace_instance, where a host has several of a role. Empty: no label.
	Instance string `toml:"instance"`
	// HostID tells this host from others: workers and what reads from them share
	// sockets, descriptors and replicas where it is the same. Empty: the boot ID
	// of the machine. Containers of one machine that share no directories want
	// one of their own each.
	HostID string `toml:"host_id"`
	// LogLevel is the least level that is logged: debug, info, warn or error.
	LogLevel string `toml:"log_level"`
}

// Master is the section [master].
type Master struct {
	// DataDir holds the master's state. Losing it loses the mount table, the
	// jobs and the registry of workers.
	DataDir string `toml:"data_dir"`
	// Listen is the address of the gRPC service. Port 0 lets the system
	// choose, here and in all others; addresses.json in the data directory
	// says what it chose.
	Listen string `toml:"listen"`
	// RaftListen is the address at which masters talk to each other.
	RaftListen string `toml:"raft_listen"`
	// HTTPListen is the address of /metrics, /healthz, /readyz and
	// /debug/pprof.
	HTTPListen string `toml:"http_listen"`

	cachemaster.Config
}

// Worker is the section [worker].
type Worker struct {
	// DataDir holds the worker's identity and what it knows of the cluster.
	DataDir string `toml:"data_dir"`
	// Listen is the address of the gRPC service.
	Listen string `toml:"listen"`
	// DataListen is the address of the data plane.
	DataListen string `toml:"data_listen"`
	// HTTPListen is the address of /metrics, /healthz, /readyz and
	// /debug/pprof.
	HTTPListen string `toml:"http_listen"`
	// UnixSocket is the path of the data plane's socket for clients on this
	// host. Empty is worker.sock in the data directory.
	UnixSocket string `toml:"unix_socket"`

	cacheworker.Config
	tier.MoveConfig

	// Memory is the size of a memory tier: a cache directory on a tmpfs, which
	// keeps what it holds when the worker stops, until the machine does. 0 is
	// none. `up` takes a quarter of the machine's memory unless it is told.
	Memory size.Bytes `toml:"memory"`
	// MemoryDir is the memory tier's directory. Empty is one in /dev/shm that is
	// named after the data directory.
	MemoryDir string `toml:"memory_dir"`

	// A directory that holds cached data. A worker needs at least one, or a
	// memory tier; those of one medium form a tier.
	Tiers []tier.Config `toml:"tier"`
}

// FUSE is the section [fuse].
type FUSE struct {
	// DataDir holds a directory for each mount point, with its lock, its
	// addresses and the log of a mount in the background.
	DataDir string `toml:"data_dir"`
	// HTTPListen is the address of /metrics, /healthz, /readyz and
	// /debug/pprof.
	HTTPListen string `toml:"http_listen"`

	fuse.Config
}

// The ports that are ours unless the user says otherwise.
const (
	portMaster     = 7760
	portRaft       = 7761
	portMasterHTTP = 7762
	portWorker     = 7770
	portData       = 7771
	portWorkerHTTP = 7772
	portMountHTTP  = 7782

	loopback = "127.0.0.1"
)

func onLoopback(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

const envPrefix = "MILLRACE"

func defaultSettings() *Settings {
	return &Settings{
		Cluster: Cluster{Masters: []string{onLoopback(portMaster)}, LogLevel: "info"},
		Master: Master{
			DataDir:    "~/.millrace/master",
			Listen:     onLoopback(portMaster),
			RaftListen: onLoopback(portRaft),
			HTTPListen: onLoopback(portMasterHTTP),
			Config:     cachemaster.DefaultConfig(),
		},
		Worker: Worker{
			DataDir:    "~/.millrace/worker",
			Listen:     onLoopback(portWorker),
			DataListen: onLoopback(portData),
			HTTPListen: onLoopback(portWorkerHTTP),
			Config:     cacheworker.DefaultConfig(),
			MoveConfig: tier.DefaultMoves(),
		},
		Client: client.DefaultConfig(),
		FUSE: FUSE{
			DataDir:    "~/.millrace/mount",
			HTTPListen: onLoopback(portMountHTTP),
			Config:     fuse.DefaultConfig(),
		},
	}
}

// newElements is what a new element of an array of tables starts from.
func newElements() map[string]any { return map[string]any{"worker.tier": tier.DefaultConfig()} }

func configSources(environ []string) config.Sources {
	return config.Sources{
		Prefix:   envPrefix,
		Environ:  environ,
		Aliases:  map[string]string{"MILLRACE_MASTERS": "cluster.masters"},
		Elements: newElements(),
	}
}

func loadSettings(src config.Sources) (*Settings, *config.Loaded, error) {
	s := defaultSettings()
	loaded, err := config.Load(s, src)
	if loaded == nil {
		return nil, nil, err
	}
	if err := loaded.Check(s.Validate()); err != nil {
		return nil, nil, err
	}
	for _, dir := range s.dirs() {
		if *dir, err = expandHome(*dir); err != nil {
			return nil, nil, err
		}
	}
	return s, loaded, nil
}

// Validate checks the keys that belong to this package and asks the packages
// for theirs. Each line of the error begins with a key's path.
func (s *Settings) Validate() error {
	var list []error
	if len(s.Cluster.Masters) == 0 {
		list = append(list, errors.New("cluster.masters: want at least one HOST:PORT"))
	}
	for _, m := range s.Cluster.Masters {
		list = append(list, checkAddress("cluster.masters", m))
	}
	if len(s.Cluster.HostID) > maxHostID {
		list = append(list, fmt.Errorf("cluster.host_id: want at most %d bytes", maxHostID))
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.Cluster.LogLevel)); err != nil {
		list = append(list, fmt.Errorf("cluster.log_level: %q: want debug, info, warn or error", s.Cluster.LogLevel))
	}
	list = append(list, s.checkListens()...)
	for _, d := range []struct{ key, dir string }{
		{"master.data_dir", s.Master.DataDir}, {"worker.data_dir", s.Worker.DataDir}, {"fuse.data_dir", s.FUSE.DataDir},
	} {
		if d.dir == "" {
			list = append(list, fmt.Errorf("%s: want a directory", d.key))
		}
	}
	c := s.clientConfig(s.Cluster.Masters)
	list = append(list,
		atPath("master", s.Master.Config.Validate()),
		atPath("worker", s.Worker.Config.Validate()),
		atPath("worker", s.Worker.MoveConfig.Validate()),
		atPath("client", c.Validate()),
		atPath("fuse", s.FUSE.Config.Validate()))
	if d := s.Worker.MemoryDir; d != "" && !strings.HasPrefix(d, "~/") && !filepath.IsAbs(d) {
		list = append(list, fmt.Errorf("worker.memory_dir: %q is not an absolute path", d))
	}
	if len(s.Worker.Tiers) > 0 { // none may be given, up then makes one
		list = append(list, atPath("worker.tier", tier.ValidateAll(s.Worker.Tiers)))
	}
	return errors.Join(list...)
}

// atPath puts the path of a section before each line of its validation, unless
// it is there.
func atPath(path string, err error) error {
	if err == nil {
		return nil
	}
	var list []error
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !strings.HasPrefix(line, "[") {
			line = "." + strings.TrimPrefix(line, path+".")
		}
		list = append(list, errors.New(path+line))
	}
	return errors.Join(list...)
}

// checkListens checks the addresses that the roles listen on. Two of one role
// are on one host, and cannot be the same.
func (s *Settings) checkListens() []error {
	var list []error
	taken := map[string]string{}
	for _, l := range []struct{ role, key, address string }{
		{"master", "listen", s.Master.Listen},
		{"master", "raft_listen", s.Master.RaftListen},
		{"master", "http_listen", s.Master.HTTPListen},
		{"worker", "listen", s.Worker.Listen},
		{"worker", "data_listen", s.Worker.DataListen},
		{"worker", "http_listen", s.Worker.HTTPListen},
		{"fuse", "http_listen", s.FUSE.HTTPListen},
	} {
		key := l.role + "." + l.key
		if err := checkAddress(key, l.address); err != nil {
			list = append(list, err)
			continue
		}
		if _, port, _ := net.SplitHostPort(l.address); port == "0" {
			continue
		}
		if other, ok := taken[l.role+" "+l.address]; ok {
			list = append(list, fmt.Errorf("%s: %s is that of %s", key, l.address, other))
		}
		taken[l.role+" "+l.address] = key
	}
	return list
}

func checkAddress(key, addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%s: %q is not HOST:PORT", key, addr)
	}
	return nil
}

// clientConfig is the section [client] with the masters to talk to.
func (s *Settings) clientConfig(masters []string) client.Config {
	c := s.Client
	c.Masters, c.HostID = masters, s.Cluster.HostID
	return c
}

// dirs are the keys in which a leading ~ is the user's home.
func (s *Settings) dirs() []*string {
	list := []*string{&s.Master.DataDir, &s.Worker.DataDir, &s.Worker.UnixSocket, &s.Worker.MemoryDir, &s.FUSE.DataDir}
	for i := range s.Worker.Tiers {
		list = append(list, &s.Worker.Tiers[i].Dir)
	}
	return list
}

func expandHome(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("where is ~ of %s: %w", path, err)
	}
	return filepath.Join(home, rest), nil
}
