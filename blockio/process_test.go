package blockio

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveFor makes this program the server of a benchmark in another process.
var serveFor = flag.String("blockio.serve", "", "serve a file of `length,network,address` until standard input ends")

// serveAlone serves a file whose bytes are on disk. It writes its address,
// and for each line that it reads the processor time that it has used, in ns.
func serveAlone(what string, in io.Reader, out io.Writer) error {
	var length int
	network, addr, _ := strings.Cut(what, ",")
	if _, err := fmt.Sscan(network, &length); err != nil {
		return err
	}
	network, addr, _ = strings.Cut(addr, ",")
	dir, err := os.MkdirTemp("", "blockio")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f := &testFile{data: pattern(length)}
	name := filepath.Join(dir, "data")
	if err := os.WriteFile(name, f.data, 0o600); err != nil {
		return err
	}
	if f.disk, err = os.Open(name); err != nil {
		return err
	}
	defer f.disk.Close()
	f.hook = serveTold(f)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	s := NewServer(DefaultServerConfig(), Identity{WorkerID: "w", BootID: "b"}, oneFile(f), slog.New(slog.DiscardHandler), nil)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	fmt.Fprintln(out, l.Addr())
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return err
		}
		fmt.Fprintln(out, u.Utime.Nano()+u.Stime.Nano())
	}
	cancel()
	return <-done
}

// otherProcess is a server in a process of its own.
type otherProcess struct {
	addr    string
	ask     io.Writer
	answers *bufio.Scanner
}

func startProcess(b *testing.B, network string, length int) *otherProcess {
	b.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(b.TempDir(), "s")
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), self, fmt.Sprintf("-blockio.serve=%d,%s,%s", length, network, addr))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // b's context ends before, and with it the process
	})
	p := &otherProcess{ask: in, answers: bufio.NewScanner(out)}
	if !p.answers.Scan() {
		b.Fatal("the other process does not answer")
	}
	p.addr = p.answers.Text()
	return p
}

// cpuTime is the processor time that the process has used.
func (p *otherProcess) cpuTime(b *testing.B) time.Duration {
	b.Helper()
	if _, err := io.WriteString(p.ask, "\n"); err != nil {
		b.Fatal(err)
	}
	var ns time.Duration
	if !p.answers.Scan() {
		b.Fatal("the other process does not answer")
	}
	if _, err := fmt.Sscan(p.answers.Text(), (*int64)(&ns)); err != nil {
		b.Fatal(err)
	}
	return ns
}

// BenchmarkRead4KProcesses is BenchmarkRead4K with sendfile and 64 readers on
// one connection, with client and server in processes of their own. It tells
// the processor time of both.
func BenchmarkRead4KProcesses(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			const length = 64 << 20
			p := startProcess(b, network, length)
			c, err := Dial(b.Context(), network, p.addr, DefaultClientConfig())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			h := mustOpen(b, c, "f", length)
			b.ResetTimer()
			server, client := p.cpuTime(b), cpuTime(b)
			readAll(b, c, h, length, 4096, 64)
			client, server = cpuTime(b)-client, p.cpuTime(b)-server
			reportCPU(b, client, "client-µs/op")
			reportCPU(b, server, "server-µs/op")
			reportCPU(b, client+server, "cpu-µs/op")
		})
	}
}
