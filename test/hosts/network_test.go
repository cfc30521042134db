package hosts_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/internal/child"
	"millrace/internal/testenv"
	"millrace/test/hosts"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(answerVariable); address != "" {
		os.Exit(answerAt(address))
	}
	os.Exit(hosts.Main(m.Run, time.Minute))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func network(t *testing.T, names ...string) *hosts.Network {
	t.Helper()
	testenv.Require(t, testenv.Namespaces)
	n, err := hosts.New(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	for _, name := range names {
		must(t, n.Add(t.Context(), name))
	}
	return n
}

// at returns what a command writes on a host.
func at(t *testing.T, n *hosts.Network, name string, args ...string) (string, error) {
	t.Helper()
	args = slices.Concat(n.Place(name).Enter, args)
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// answerVariable makes this program one that takes connections at an address.
const answerVariable = "MILLRACE_TEST_ANSWER"

func answerAt(address string) int {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	for {
		if c, err := ln.Accept(); err == nil {
			_ = c.Close() // that it was taken is the answer
		}
	}
}

// answerer lets a host take connections at its port 7.
func answerer(t *testing.T, n *hosts.Network, name string) {
	t.Helper()
	args := slices.Concat(n.Place(name).Enter, []string{os.Args[0]})
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), answerVariable+"="+n.Place(name).Address+":7")
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	p, err := child.Start(cmd)
	must(t, err)
	t.Cleanup(p.Kill)
	_, err = bufio.NewReader(stdout).ReadString('\n')
	must(t, err)
}

// hears reports whether a host answers this program within a second.
func hears(t *testing.T, n *hosts.Network, name string) bool {
	t.Helper()
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(t.Context(), "tcp", n.Place(name).Address+":7")
	if err != nil {
		return false
	}
	must(t, c.Close())
	return true
}

// TestBootID: each host has one, which changes when it is asked to.
func TestBootID(t *testing.T) {
	n := network(t, "a", "b")
	id := func(name string) string {
		s, err := at(t, n, name, "cat", "/proc/sys/kernel/random/boot_id")
		must(t, err)
		return s
	}
	a, b := id("a"), id("b")
	if a == b || len(a) != 36 {
		t.Errorf("the boot IDs are %q and %q", a, b)
	}
	must(t, n.Reboot("a"))
	if id("a") == a || id("b") != b {
		t.Errorf("after a's reboot they are %q and %q", id("a"), id("b"))
	}
}

// TestHubStays: who is left on the network reaches the hub at the Ethernet
// address that it knows, whoever leaves and comes back.
func TestHubStays(t *testing.T) {
	names := []string{"a", "b", "c"}
	n := network(t, names...)
	address := func() string {
		hub, err := net.InterfaceByName("br0")
		must(t, err)
		return hub.HardwareAddr.String()
	}
	was := address()
	for _, name := range names {
		heal, err := n.Isolate(t.Context(), name)
		must(t, err)
		if now := address(); now != was {
			t.Errorf("without %s it is %s, and was %s", name, now, was)
		}
		must(t, heal(t.Context()))
		if now := address(); now != was {
			t.Errorf("with %s again it is %s, and was %s", name, now, was)
		}
	}
}

// TestLosses: what is lost is lost, and comes back.
func TestLosses(t *testing.T) {
	n := network(t, "a", "b")
	answerer(t, n, "a")
	answerer(t, n, "b")
	for name, lose := range map[string]func() (hosts.Heal, error){
		"isolate": func() (hosts.Heal, error) { return n.Isolate(t.Context(), "a") },
		"hide":    func() (hosts.Heal, error) { return n.Hide(t.Context(), "a") },
		"part":    func() (hosts.Heal, error) { return n.Part(t.Context(), "a") },
		"drop":    func() (hosts.Heal, error) { return n.Drop(t.Context(), "a", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			if !hears(t, n, "a") {
				t.Fatal("a does not answer before")
			}
			heal, err := lose()
			must(t, err)
			if hears(t, n, "a") {
				t.Error("a answers")
			}
			if !hears(t, n, "b") {
				t.Error("b does not answer")
			}
			must(t, heal(t.Context()))
			if !hears(t, n, "a") {
				t.Error("a does not answer after")
			}
		})
	}
}

// TestLossesOverlap: what two want lost is lost until both have healed it.
func TestLossesOverlap(t *testing.T) {
	n := network(t, "a", "b")
	answerer(t, n, "a")
	hide, err := n.Hide(t.Context(), "a")
	must(t, err)
	part, err := n.Part(t.Context(), "a")
	must(t, err)
	must(t, hide(t.Context()))
	if hears(t, n, "a") {
		t.Error("a answers before both are healed")
	}
	must(t, part(t.Context()))
	if !hears(t, n, "a") {
		t.Error("a does not answer after")
	}
}
