package blockio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/errs"
	"millrace/internal/size"
)

// reopened gives fresh descriptors of a file.
func reopened(f *os.File, base, length int64) func(context.Context) (*os.File, int64, int64, error) {
	return func(context.Context) (*os.File, int64, int64, error) {
		fd, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME, 0)
		return fd, base, length, err
	}
}

// filesOpen returns how many descriptors of this process are of name.
func filesOpen(t testing.TB, name string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && target == name { // others come and go
			n++
		}
	}
	return n
}

// noneLeft fails the test if descriptors of f, which is itself one, are open.
// It does not count on finalizers.
func noneLeft(t testing.TB, f *os.File) {
	t.Helper()
	if n := filesOpen(t, f.Name()); n != 1 {
		t.Errorf("%d descriptors were left open", n-1)
	}
}

func TestDescriptor(t *testing.T) {
	data := pattern(100_000)
	const base = 4096
	disk := onDisk(t, append(make([]byte, base), data...))
	f := &testFile{data: data, give: reopened(disk, base, int64(len(data)))}
	s := startServer(t, "unix", DefaultServerConfig(), oneFile(f))
	c := s.dial(t)
	h := mustOpen(t, c, "f", len(data))
	fd, off, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
	if err != nil || off != base {
		t.Fatalf("Descriptor: base %d, %v", off, err)
	}
	// The test's and the one that was passed: the server closes its own behind
	// the answer.
	await(t, func() bool { return filesOpen(t, disk.Name()) == 2 })
	flags, err := unix.FcntlInt(fd.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v: it would be inherited", flags, err)
	}
	// It outlives handle, connection and server.
	c.CloseHandle(h)
	s.stop()
	<-c.Done()
	p := make([]byte, len(data))
	if _, err := fd.ReadAt(p, off); err != nil || !bytes.Equal(p, data) {
		t.Errorf("reading the descriptor: %v", err)
	}
	if _, err := fd.Write([]byte{1}); err == nil {
		t.Error("the descriptor can be written to")
	}
	if err := fd.Close(); err != nil {
		t.Error(err)
	}
	noneLeft(t, disk)
}

// Whatever a File gives, nothing of it stays open on the server, and what is
// wrong fails one request.
func TestDescriptorErrors(t *testing.T) {
	data := pattern(1000)
	length := int64(len(data))
	disk := onDisk(t, data)
	writable := func(context.Context) (*os.File, int64, int64, error) {
		fd, err := os.OpenFile(disk.Name(), os.O_RDWR, 0)
		return fd, 0, length, err
	}
	for name, tt := range map[string]struct {
		give func(context.Context) (*os.File, int64, int64, error)
		want error
	}{
		"not cached": {nil, errs.NotCached},
		"error with file": {func(ctx context.Context) (*os.File, int64, int64, error) {
			fd, _, _, err := reopened(disk, 0, 0)(ctx)
			return fd, 0, 0, errors.Join(errs.Busy, err)
		}, errs.Busy},
		"nothing":        {func(context.Context) (*os.File, int64, int64, error) { return nil, 0, length, nil }, errs.Internal},
		"negative base":  {reopened(disk, -1, length), errs.Internal},
		"base overflows": {reopened(disk, 1<<63-1, length), errs.Internal},
		"wrong length":   {reopened(disk, 0, length-1), errs.Internal},
		"closed file": {func(ctx context.Context) (*os.File, int64, int64, error) {
			fd, base, length, err := reopened(disk, 0, length)(ctx)
			fd.Close()
			return fd, base, length, err
		}, errs.Internal},
		"file too short": {reopened(disk, 1, length), errs.Corrupt},
		"writable":       {writable, errs.Corrupt},
		"a directory": {func(context.Context) (*os.File, int64, int64, error) {
			fd, err := os.Open(filepath.Dir(disk.Name()))
			return fd, 0, length, err
		}, errs.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			f := &testFile{data: data, give: tt.give}
			c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dial(t)
			h := mustOpen(t, c, "f", len(data))
			fd, _, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
			if fd != nil || !errors.Is(err, tt.want) {
				t.Errorf("Descriptor: %v, %v, want %v", fd, err, tt.want)
			}
			if _, err := c.ReadAt(t.Context(), h, make([]byte, 10), 0, ReadOptions{}); err != nil {
				t.Errorf("the connection: %v", err)
			}
			if _, _, err := c.Descriptor(t.Context(), h+1, DescriptorOptions{}); !errors.Is(err, errs.Invalid) {
				t.Errorf("Descriptor of a handle that is not open: %v", err)
			}
			noneLeft(t, disk)
			if n := filesOpen(t, filepath.Dir(disk.Name())); n != 0 {
				t.Errorf("%d descriptors of the directory were left open", n)
			}
		})
	}
}

// A caller that gave up gets no descriptor, and nobody keeps it.
func TestCanceledDescriptor(t *testing.T) {
	data := pattern(1000)
	disk := onDisk(t, data)
	giving, free := make(chan struct{}, 1), make(chan struct{})
	f := &testFile{data: data, give: func(ctx context.Context) (*os.File, int64, int64, error) {
		fd, base, length, err := reopened(disk, 0, int64(len(data)))(context.WithoutCancel(ctx))
		select {
		case giving <- struct{}{}:
			<-free
		default:
		}
		return fd, base, length, err
	}}
	s := startServer(t, "unix", DefaultServerConfig(), oneFile(f))
	c := s.dial(t)
	h := mustOpen(t, c, "f", len(data))
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 1)
	go func() {
		_, _, err := c.Descriptor(ctx, h, DescriptorOptions{})
		results <- err
	}()
	for len(giving) == 0 {
		runtime.Gosched()
	}
	cancel()
	if err := <-results; !errors.Is(err, errs.Canceled) {
		t.Errorf("Descriptor: %v", err)
	}
	close(free)
	fd, _, err := c.Descriptor(t.Context(), h, DescriptorOptions{}) // behind the other's answer or before it
	if err != nil {
		t.Fatal(err)
	}
	fd.Close()
	c.Close()
	s.stop()
	noneLeft(t, disk)
}

// Descriptors that are on their way when callers give up and connections end
// do not stay open.
func TestDescriptorsOnTheWay(t *testing.T) {
	data := pattern(1000)
	disk := onDisk(t, data)
	f := &testFile{data: data, give: reopened(disk, 0, int64(len(data)))}
	s := startServer(t, "unix", DefaultServerConfig(), oneFile(f))
	for round := range 20 {
		c := s.dial(t)
		h := mustOpen(t, c, "f", len(data))
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(round*i)*10*time.Microsecond)
				defer cancel()
				if fd, _, err := c.Descriptor(ctx, h, DescriptorOptions{}); err == nil {
					fd.Close()
				}
			})
		}
		if round%2 == 1 {
			c.Close()
		}
		wg.Wait()
		c.Close()
	}
	s.stop()
	noneLeft(t, disk)
}

// A client that does not receive its descriptors costs its connection, and the
// server keeps none.
func TestDescriptorsNotReceived(t *testing.T) {
	data := pattern(1000)
	disk := onDisk(t, data)
	cfg := DefaultServerConfig()
	cfg.WriteTimeout = size.Duration(50 * time.Millisecond)
	f := &testFile{data: data, give: reopened(disk, 0, int64(len(data)))}
	s := startServer(t, "unix", cfg, oneFile(f))
	nc := s.raw(t)
	rawOpen(t, nc)
	if err := nc.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); ; id++ { // until the server has enough
		if _, err := nc.Write(appendHeader(nil, &header{Op: opFD, RequestID: id, Handle: 1})); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection was kept")
			}
			break
		}
	}
	nc.Close()
	s.stop()
	noneLeft(t, disk)
}

// passing sends bytes and, with the first of them, descriptors.
func passing(t testing.TB, nc *net.UnixConn, b []byte, files ...*os.File) {
	t.Helper()
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := nc.WriteMsgUnix(b, rights, nil); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// A client that sends descriptors gets rid of them, and no more.
func TestDescriptorsFromClient(t *testing.T) {
	data := pattern(1000)
	disk := onDisk(t, data)
	s := startServer(t, "unix", DefaultServerConfig(), oneFile(&testFile{data: data}))
	var d net.Dialer
	nc, err := d.DialContext(t.Context(), "unix", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	local := nc.(*net.UnixConn)
	passing(t, local, encodeClientHello(&clientHello{Least: 1, Most: 1, Features: ourFeatures}), disk, disk)
	if _, err := readServerHello(nc); err != nil {
		t.Fatal(err)
	}
	passing(t, local, openFrame(t, 1, "f", 1000), disk, disk, disk)
	if e, err := nextEnd(nc, 1); err != nil || e.Failed {
		t.Fatal(e, err)
	}
	noneLeft(t, disk)
}

// descriptorFrames is an answer to FD with request ID 2.
func descriptorFrames(d descriptorPayload, e *endPayload) []byte {
	b := appendHeader(nil, &header{Op: opData, RequestID: 2, Handle: 1, Length: d.size()})
	b = appendDescriptor(b, d)
	if e == nil {
		return b
	}
	b = appendHeader(b, &header{Op: opEnd, RequestID: 2, Handle: 1, Length: uint32(endFixed + len(e.Text))})
	return appendEnd(b, e)
}

// A server that lies about descriptors loses its connection or its request,
// and nothing that it passed stays open.
func TestLyingDescriptors(t *testing.T) {
	disk := onDisk(t, pattern(1000))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	right := descriptorPayload{Base: 0, Length: 1000}
	good := descriptorFrames(right, &endPayload{})
	end := good[headerSize+descriptorSize:]
	for _, tt := range []struct {
		name  string
		pass  []*os.File
		send  []byte
		pass2 []*os.File
		send2 []byte
		want  error
	}{
		{name: "no lie", pass: []*os.File{disk}, send: good},
		{name: "no lie in two pieces", pass: []*os.File{disk}, send: good[:70], send2: good[70:]},
		{name: "no descriptor", send: good, want: errs.Unavailable},
		{name: "no descriptor, and hung up", send: good[:headerSize+descriptorSize], want: errs.Unavailable},
		{name: "hung up behind the descriptor", pass: []*os.File{disk}, send: good[:10], want: errs.Unavailable},
		{name: "hung up before END", pass: []*os.File{disk}, send: good[:headerSize+descriptorSize], want: errs.Unavailable},
		{name: "hung up in END", pass: []*os.File{disk}, send: good[:headerSize+descriptorSize+70], want: errs.Unavailable},
		{name: "END without DATA", pass: []*os.File{disk}, send: end, want: errs.Unavailable},
		{name: "two descriptors", pass: []*os.File{disk, disk}, send: good, want: errs.Unavailable},
		{name: "many descriptors", pass: []*os.File{disk, disk, disk, disk, disk, disk, disk}, send: good, want: errs.Unavailable},
		{name: "one too many", pass: []*os.File{disk}, send: good[:5], pass2: []*os.File{disk}, send2: good[5:], want: errs.Unavailable},
		{name: "one too many with END", pass: []*os.File{disk}, send: good[:headerSize+descriptorSize], pass2: []*os.File{disk}, send2: end, want: errs.Unavailable},
		{name: "DATA twice", pass: []*os.File{disk}, send: append(descriptorFrames(right, nil), good...), want: errs.Unavailable},
		{name: "wrong length", pass: []*os.File{disk}, send: descriptorFrames(descriptorPayload{Length: 999}, &endPayload{}), want: errs.Unavailable},
		{name: "base overflows", pass: []*os.File{disk}, send: descriptorFrames(descriptorPayload{Base: 1<<63 - 5, Length: 1000}, &endPayload{}), want: errs.Unavailable},
		{name: "base behind the end", pass: []*os.File{disk}, send: descriptorFrames(descriptorPayload{Base: 1, Length: 1000}, &endPayload{}), want: errs.Corrupt},
		{name: "a pipe", pass: []*os.File{r}, send: good, want: errs.Corrupt},
		{name: "a descriptor, and a failure", pass: []*os.File{disk}, send: descriptorFrames(right, &endPayload{Failed: true, Kind: errs.Busy}), want: errs.Busy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := socketPair(t)
			var served sync.WaitGroup
			served.Go(func() {
				defer far.Close()
				if err := lieUntil(far, openedFrame(1)); err != nil {
					t.Error(err)
					return
				}
				passing(t, far, tt.send, tt.pass...)
				if len(tt.send2) > 0 {
					passing(t, far, tt.send2, tt.pass2...)
				}
			})
			c := trusting(t, near)
			h := mustOpen(t, c, "f", 1000)
			fd, _, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
			if !errors.Is(err, tt.want) || (fd == nil) != (tt.want != nil) {
				t.Errorf("Descriptor: %v, %v, want %v", fd, err, tt.want)
			}
			if fd != nil {
				fd.Close()
			}
			<-c.Done() // also where it went well: the peer hangs up
			c.Close()
			served.Wait()
			noneLeft(t, disk)
			if n := filesOpen(t, pipeName(t, r)); n != 2 {
				t.Errorf("%d descriptors of the pipe are open, want both ends", n)
			}
		})
	}
}

func pipeName(t *testing.T, f *os.File) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// trusting returns a client on a connection that is offered all features.
func trusting(t testing.TB, near net.Conn) *Conn {
	t.Helper()
	hello, err := shakeHands(t.Context(), near, DefaultClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	hello.Features = ourFeatures
	return newConn(near, "pair", DefaultClientConfig(), hello)
}

// lieUntil greets, answers one OPEN and receives one request.
func lieUntil(nc net.Conn, opened []byte) error {
	if err := greet(nc); err != nil {
		return err
	}
	b := make([]byte, headerSize)
	for _, send := range [][]byte{opened, nil} {
		if _, err := io.ReadFull(nc, b); err != nil {
			return err
		}
		h, err := parseHeader(b)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, nc, int64(h.Length)); err != nil {
			return err
		}
		if _, err := nc.Write(send); err != nil {
			return err
		}
	}
	return nil
}

// Descriptors that come with bytes for which nobody asked for any.
func TestUnwantedDescriptors(t *testing.T) {
	data := pattern(200_000)
	disk := onDisk(t, data)
	head := appendHeader(nil, &header{Op: opData, RequestID: 2, Length: uint32(len(data))})
	for name, at := range map[string]int{"with the header": 0, "within the bytes": 100_000} {
		t.Run(name, func(t *testing.T) {
			near, far := socketPair(t)
			var served sync.WaitGroup
			served.Go(func() {
				defer far.Close()
				if err := lieUntil(far, openedFrame(1)); err != nil {
					t.Error(err)
					return
				}
				b := append(bytes.Clone(head), data...)
				passing(t, far, b[:at])
				passing(t, far, b[at:], disk)
				passing(t, far, appendEnd(appendHeader(nil, &header{Op: opEnd, RequestID: 2, Length: endFixed}), &endPayload{}))
			})
			hello, err := shakeHands(t.Context(), near, DefaultClientConfig())
			if err != nil {
				t.Fatal(err)
			}
			c := newConn(near, "pair", DefaultClientConfig(), hello)
			h := mustOpen(t, c, "f", len(data))
			if _, err := c.ReadAt(t.Context(), h, make([]byte, len(data)), 0, ReadOptions{}); !errors.Is(err, errs.Unavailable) {
				t.Errorf("ReadAt: %v", err)
			}
			c.Close()
			served.Wait()
			noneLeft(t, disk)
		})
	}
}

// A process that can have no more descriptors gets an error that says so, and
// goes on with the connection.
func TestNoDescriptorsLeft(t *testing.T) {
	data := pattern(1000)
	disk := onDisk(t, data)
	fds := make(chan *os.File, 1)
	f := &testFile{data: data, give: func(context.Context) (*os.File, int64, int64, error) { return <-fds, 0, int64(len(data)), nil }}
	c := startServer(t, "unix", DefaultServerConfig(), oneFile(f)).dial(t)
	h := mustOpen(t, c, "f", len(data))
	// Far up, so that the server makes no room below the limit when it closes it.
	far, err := unix.FcntlInt(disk.Fd(), unix.F_DUPFD_CLOEXEC, 900)
	if err != nil {
		t.Fatal(err)
	}
	fds <- os.NewFile(uintptr(far), disk.Name())
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = lowestFree(t)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	got, _, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
	if e := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); e != nil {
		t.Fatal(e)
	}
	if got != nil || !errors.Is(err, errs.Unavailable) || !errors.Is(err, unix.EMFILE) {
		t.Errorf("Descriptor: %v, %v", got, err)
	}
	fd, err := os.Open(disk.Name())
	if err != nil {
		t.Fatal(err)
	}
	fds <- fd
	got, _, err = c.Descriptor(t.Context(), h, DescriptorOptions{})
	if err != nil {
		t.Fatalf("the next one: %v", err)
	}
	got.Close()
	noneLeft(t, disk)
}

// lowestFree returns the lowest descriptor that is not open.
func lowestFree(t *testing.T) uint64 {
	t.Helper()
	for n := range uint64(1 << 16) {
		if _, err := os.Readlink("/proc/self/fd/" + strconv.FormatUint(n, 10)); err != nil {
			return n
		}
	}
	t.Fatal("all descriptors are open")
	return 0
}
