package hosts

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
	"sync"
	"syscall"

	"millrace/internal/child"
)

// Addresses of the hub, which is this program's namespace. Clients come from the
// first, the under-store answers at the second, so that a host can lose one and
// keep the other.
const (
	subnet        = "10.77.0."
	ClientAddress = subnet + "1"
	StoreAddress  = subnet + "2"
	firstHost     = 10
)

// Ethernet addresses: of the hub, and one that nobody has. A bridge without one
// of its own has that of one of its ports, and another one when a port leaves or
// comes: all hosts would go on sending to the old one for half a minute.
const (
	hub     = "02:00:00:00:00:01"
	nowhere = "02:00:00:00:00:ff"
)

// Network is a bridge with a network namespace for each host. A namespace lives
// as long as the process that holds it. Hosts are added by one goroutine; what
// happens to them may be done by many, to one host by one at a time.
type Network struct {
	dir   string
	hosts map[string]*host
}

type host struct {
	name, address, port string // port: its end at the bridge
	bootID              string // file that is mounted over the kernel's
	holder              *child.Process

	mu   sync.Mutex
	lost map[string]int // by address, how many want what is sent to it lost
}

// Place is where a process lives.
type Place struct {
	// Address is its IP address, for its listeners alone.
	Address string
	// Enter is a command, with its first arguments, that runs the command behind
	// them there, in the same process; empty for this host.
	Enter []string
}

// New makes the bridge of a program that is Inside. What it needs to keep is in
// dir.
func New(ctx context.Context, dir string) (*Network, error) {
	n := &Network{dir: dir, hosts: map[string]*host{}}
	for _, args := range []string{
		"link add br0 address " + hub + " type bridge", "link set br0 up",
		"addr add " + ClientAddress + "/24 dev br0",
		"addr add " + StoreAddress + "/32 dev br0", // in no subnet, so that what is at it also speaks from it
	} {
		if err := command(ctx, "ip", strings.Fields(args)...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Add makes a host.
func (n *Network) Add(ctx context.Context, name string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	holder, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("hold a network namespace: %w", err)
	}
	h := &host{
		name: name, address: fmt.Sprint(subnet, firstHost+len(n.hosts)),
		port: fmt.Sprint("port", len(n.hosts)), bootID: filepath.Join(n.dir, name+".boot_id"), holder: holder,
		lost: map[string]int{},
	}
	n.hosts[name] = h
	steps := [][]string{
		{"ip", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(holder.PID())},
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
	return n.Reboot(name)
}

// Place says where a host is.
func (n *Network) Place(name string) Place {
	const enter = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	h := n.hosts[name]
	return Place{Address: h.address, Enter: h.inside("unshare", "--mount", "--propagation", "slave", "sh", "-c", enter, h.bootID)}
}

// Reboot gives a host another boot ID, which its processes see from their next
// start on.
func (n *Network) Reboot(name string) error {
	return os.WriteFile(n.hosts[name].bootID, []byte(newBootID()), 0o600)
}

// inside is a command that runs on the host.
func (h *host) inside(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.holder.PID())}, args...)
}

func (h *host) run(ctx context.Context, args ...string) error {
	c := h.inside(args...)
	return command(ctx, c[0], c[1:]...)
}

// Heal undoes a partition or a loss.
type Heal func(ctx context.Context) error

// Isolate takes a host off the network: what it sends is lost, and what is
// sent to it.
func (n *Network) Isolate(ctx context.Context, name string) (Heal, error) {
	h := n.hosts[name]
	if err := command(ctx, "ip", "link", "set", h.port, "nomaster"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		return command(ctx, "ip", "link", "set", h.port, "master", "br0")
	}, nil
}

// Part separates some hosts from the others and from the clients; all keep the
// under-store.
func (n *Network) Part(ctx context.Context, names ...string) (Heal, error) {
	apart := map[string]bool{}
	for _, name := range names {
		apart[name] = true
	}
	var done []Heal
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
		lost := []string{ClientAddress}
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

// Hide loses all that a host sends to the clients.
func (n *Network) Hide(ctx context.Context, name string) (Heal, error) {
	return n.hosts[name].lose(ctx, ClientAddress)
}

// lose loses what the host sends to an address, without a word to the sender,
// until the last of those who want that has healed it.
func (h *host) lose(ctx context.Context, address string) (Heal, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost[address] == 0 {
		if err := h.run(ctx, "ip", "neigh", "replace", address, "lladdr", nowhere, "dev", "eth0", "nud", "permanent"); err != nil {
			return nil, err
		}
	}
	h.lost[address]++
	return func(ctx context.Context) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.lost[address]--; h.lost[address] > 0 {
			return nil
		}
		return h.run(ctx, "ip", "neigh", "del", address, "dev", "eth0")
	}, nil
}

// Close ends all hosts and the bridge. No process is there any more. Links are
// removed by hand: the kernel takes its time to remove those of a network
// namespace that nobody holds, and their names are wanted again.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, command(context.Background(), "ip", "link", "del", h.port))
		h.holder.Kill()
	}
	return errors.Join(append(errs, command(context.Background(), "ip", "link", "del", "br0"))...)
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
