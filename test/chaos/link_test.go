package main

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo starts a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // it ends with the test
				_ = c.Close()
			}()
		}
	}()
	return ln.Addr().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startLink(t *testing.T) *link {
	t.Helper()
	l, err := newLink(t.Context(), "127.0.0.1:0", echo(t))
	must(t, err)
	t.Cleanup(func() { must(t, l.close()) })
	return l
}

func dial(t *testing.T, l *link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.address())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// say sends a word and returns what comes back within the time.
func say(t *testing.T, c net.Conn, word string, within time.Duration) (string, error) {
	t.Helper()
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	return hear(t, c, len(word), within)
}

func hear(t *testing.T, c net.Conn, n int, within time.Duration) (string, error) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(within)))
	p := make([]byte, n)
	n, err := io.ReadFull(c, p)
	return string(p[:n]), err
}

const (
	patience = time.Minute            // for what must happen
	moment   = 100 * time.Millisecond // for what must not
)

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestLinkPasses(t *testing.T) {
	l := startLink(t)
	c := dial(t, l)
	for _, delay := range []time.Duration{0, time.Millisecond} {
		l.set(pass, delay)
		if got, err := say(t, c, "hello", patience); got != "hello" || err != nil {
			t.Errorf("delay %v: got %q, %v", delay, got, err)
		}
	}
}

func TestLinkHolds(t *testing.T) {
	l := startLink(t)
	c := dial(t, l)
	l.set(hold, 0)
	if got, err := say(t, c, "hello", moment); got != "" || !isTimeout(err) {
		t.Errorf("held: got %q, %v", got, err)
	}
	l.set(pass, 0)
	if got, err := hear(t, c, 5, patience); got != "hello" || err != nil {
		t.Errorf("released: got %q, %v", got, err)
	}
}

func TestLinkCuts(t *testing.T) {
	l := startLink(t)
	c := dial(t, l)
	_, err := say(t, c, "hello", patience)
	must(t, err)
	l.set(cut, 0)
	for name, c := range map[string]net.Conn{"old": c, "new": dial(t, l)} {
		if got, err := hear(t, c, 1, patience); got != "" || err == nil || isTimeout(err) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	l.set(pass, 0)
	if got, err := say(t, dial(t, l), "hello", patience); got != "hello" || err != nil {
		t.Errorf("after the cut: got %q, %v", got, err)
	}
}

func TestLinkSwallows(t *testing.T) {
	l := startLink(t)
	idle, c := dial(t, l), dial(t, l)
	for _, c := range []net.Conn{idle, c} {
		_, err := say(t, c, "hello", patience)
		must(t, err)
	}
	l.set(blackHole, 0)
	if got, err := say(t, c, "hello", moment); got != "" || !isTimeout(err) {
		t.Errorf("swallowed: got %q, %v", got, err)
	}
	l.set(pass, 0)
	if got, err := hear(t, c, 1, patience); got != "" || err == nil || isTimeout(err) {
		t.Errorf("a connection that lost bytes goes on: got %q, %v", got, err)
	}
	if got, err := say(t, idle, "hello", patience); got != "hello" || err != nil {
		t.Errorf("one that lost none: got %q, %v", got, err)
	}
}
