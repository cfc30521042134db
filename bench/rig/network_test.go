package rig

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// What is sent from the network arrives here, over the wire and not by
// loopback, and nothing is left of it.
func TestNetwork(t *testing.T) {
	testenv.Require(t, testenv.Root)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: ", err)
	}
	n, err := NewNetwork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", n.Here+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}
	}()
	var said []byte
	err = n.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), time.Minute)
		if err != nil {
			return err
		}
		defer c.Close()
		said, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(said), n.There+":") {
		t.Errorf("it came from %s, want %s", said, n.There)
	}
	if len(wires(t)) != 1 {
		t.Errorf("wires %v, want one", wires(t))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(wires(t)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) { // the kernel takes a namespace away behind our back
			t.Fatalf("left: %v", wires(t))
		}
	}
}

// wires are the ends of networks of this process that are here.
func wires(t *testing.T) (names []string) {
	t.Helper()
	all, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Name() == wireName(os.Getpid()) {
			names = append(names, e.Name())
		}
	}
	return names
}
