package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Network is a network namespace and the one wire that joins it to this host's
// network: what another host is, but for its processors. It has no name, and
// ends, with both ends of the wire, when it is closed or this process is gone.
type Network struct {
	ns *os.File // keeps it
	// Here and There are the addresses of the ends of the wire.
	Here, There string
}

// NewNetwork makes a network. It needs root and the program ip.
func NewNetwork(ctx context.Context) (*Network, error) {
	link := wireName(os.Getpid())
	var n *Network
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		n = newNetwork(ns, os.Getpid())
		// Children begin where the thread is that starts them: those of other
		// threads here.
		there := unix.Gettid()
		err = onThread(func() error {
			return ip(ctx,
				fmt.Sprintf("link add %s type veth peer name eth0 netns %d", link, there),
				"addr add "+n.Here+"/30 dev "+link,
				"link set "+link+" up")
		})
		if err != nil {
			return err
		}
		return ip(ctx, "link set lo up", "addr add "+n.There+"/30 dev eth0", "link set eth0 up")
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// newNetwork chooses addresses that no other process's network has, from the
// block that is set aside for benchmarks (RFC 2544).
func newNetwork(ns *os.File, pid int) *Network {
	subnet, host := pid>>6&0xff, pid&0x3f<<2
	return &Network{ns: ns, Here: fmt.Sprintf("198.18.%d.%d", subnet, host+1), There: fmt.Sprintf("198.18.%d.%d", subnet, host+2)}
}

// Do calls f on a thread that is in the network: sockets that f makes are
// there, and stay there.
func (n *Network) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// Close ends the network, once no socket is in it any more. A nil network is
// closed.
func (n *Network) Close() error {
	if n == nil {
		return nil
	}
	return n.ns.Close()
}

// onThread calls f on a thread of its own, which ends behind it. It is not the
// process's first, which would stay, and is what others take for the process.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err := onThread(f) // on another one, for this one waits
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // nobody else gets this thread
	}()
	return <-done
}

func ip(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		out, err := exec.CommandContext(ctx, "ip", strings.Fields(c)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// wireName is the name of this host's end of the wire, at most 15 bytes.
func wireName(pid int) string { return fmt.Sprintf("mrbench%d", pid) }
