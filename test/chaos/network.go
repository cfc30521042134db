package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"millrace/internal/child"
	"millrace/test/cluster"
)

// Addresses of the hub, which is this process's namespace. Clients come from
// the first, the under-store answers at the second, so that a host can lose one
// and keep the other.
const (
	subnet        = "10.77.0."
	clientAddress = subnet + "1"
	storeAddress  = subnet + "2"
	firstHost     = 10
)

// nowhere is an Ethernet address that nobody has.
const nowhere = "02:00:00:00:00:ff"

// network is a bridge with a network namespace for each process of the
// cluster. A namespace lives as long as the process that holds it, and all of
// them end with this one: nothing of it has a name outside.
type network struct {
	dir   string
	hosts map[string]*host
	lossy error // why links cannot be made lossy
}

type host struct {
	name, address, port string // port: its end at the bridge
	holder              *child.Process
}

// newNetwork makes the bridge. This process must have a network namespace of
// its own.
func newNetwork(ctx context.Context, dir string) (*network, error) {
	n := &network{dir: dir, hosts: map[string]*host{}}
	for _, args := range []string{
		"link set lo up", "link add br0 type bridge", "link set br0 up",
		"addr add " + clientAddress + "/24 dev br0", "addr add " + storeAddress + "/24 dev br0",
	} {
		if err := command(ctx, "ip", strings.Fields(args)...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// add makes a host. It has a boot ID of its own, which makes it another machine
// to all others.
func (n *network) add(ctx context.Context, name string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	holder, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("hold a network namespace: %w", err)
	}
	h := &host{
		name: name, address: fmt.Sprint(subnet, firstHost+len(n.hosts)),
		port: fmt.Sprint("port", len(n.hosts)), holder: holder,
	}
	n.hosts[name] = h
	pid := strconv.Itoa(holder.PID())
	steps := [][]string{
		{"ip", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"ip", "link", "set", h.port, "master", "br0", "up"},
		h.inside("ip", "link", "set", "lo", "up"),
		h.inside("ip", "addr", "add", h.address+"/24", "dev", "eth0"),
		h.inside("ip", "link", "set", "eth0", "up"),
	}
	for _, s := range steps {
		if err := command(ctx, s[0], s[1:]...); err != nil {
			return err
		}
	}
	return os.WriteFile(n.bootID(name), []byte(newBootID()), 0o600)
}

// host says how a process gets to its host.
func (n *network) host(name string) cluster.Host {
	const enter = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	h := n.hosts[name]
	return cluster.Host{Address: h.address, Enter: h.inside("unshare", "--mount", "sh", "-c", enter, n.bootID(name))}
}

func (n *network) bootID(name string) string { return filepath.Join(n.dir, name+".boot_id") }

// inside is a command that runs on the host.
func (h *host) inside(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.holder.PID())}, args...)
}

func (h *host) run(ctx context.Context, args ...string) error {
	c := h.inside(args...)
	return command(ctx, c[0], c[1:]...)
}

// heal undoes a partition or a loss.
type heal func(ctx context.Context) error

// isolate takes a host off the network: what it sends is lost, and what is
// sent to it.
func (n *network) isolate(ctx context.Context, name string) (heal, error) {
	h := n.hosts[name]
	if err := command(ctx, "ip", "link", "set", h.port, "nomaster"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return command(ctx, "ip", "link", "set", h.port, "master", "br0")
	}, nil
}

// part separates some hosts from the others and from the clients; all keep the
// under-store.
func (n *network) part(ctx context.Context, names ...string) (heal, error) {
	apart := map[string]bool{}
	for _, name := range names {
		apart[name] = true
	}
	var done []heal
	undo := func(ctx context.Context) error {
		var list []error
		for _, h := range done {
			list = append(list, h(ctx))
		}
		return errors.Join(list...)
	}
	for _, a := range n.hosts {
		if !apart[a.name] {
			continue
		}
		lost := []string{clientAddress}
		for _, b := range n.hosts {
			if apart[b.name] {
				continue
			}
			lost = append(lost, b.address)
			h, err := b.lose(ctx, a.address)
			if err != nil {
				return nil, errors.Join(err, undo(ctx))
			}
			done = append(done, h)
		}
		for _, address := range lost {
			h, err := a.lose(ctx, address)
			if err != nil {
				return nil, errors.Join(err, undo(ctx))
			}
			done = append(done, h)
		}
	}
	return undo, nil
}

// hide loses all that a host sends to the clients.
func (n *network) hide(ctx context.Context, name string) (heal, error) {
	return n.hosts[name].lose(ctx, clientAddress)
}

// lose loses what the host sends to an address, without a word to the sender.
func (h *host) lose(ctx context.Context, address string) (heal, error) {
	if err := h.run(ctx, "ip", "neigh", "replace", address, "lladdr", nowhere, "dev", "eth0", "nud", "permanent"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return h.run(ctx, "ip", "neigh", "del", address, "dev", "eth0")
	}, nil
}

// drop loses a part of the packets that come to a host.
func (n *network) drop(ctx context.Context, name, probability string) (heal, error) {
	h := n.hosts[name]
	rule := func(what string) []string {
		return []string{"iptables", "-w", what, "INPUT", "-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", probability, "-j", "DROP"}
	}
	if err := h.run(ctx, rule("-A")...); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return h.run(ctx, rule("-D")...) }, nil
}

// tryLoss finds out whether drop works here.
func (n *network) tryLoss(ctx context.Context, name string) {
	undo, err := n.drop(ctx, name, "0.05")
	if err == nil {
		err = undo(ctx)
	}
	n.lossy = err
}

func (n *network) close() {
	for _, h := range n.hosts {
		h.holder.Kill()
	}
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// newBootID is a UUID, as the kernel writes it.
func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
