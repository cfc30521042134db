package s3fs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace/ufs"
)

// Bounds of one HTTP attempt.
const (
	dialTimeout   = 5 * time.Second
	tlsTimeout    = 10 * time.Second
	headerTimeout = 30 * time.Second // from the request's end to the answer's head
	idleTimeout   = 90 * time.Second // how long an unused connection is kept
)

// tuneTransport sets what bulk reads need: one HTTP/1.1 connection per request
// under way, kept for the next, and no compression in between.
func tuneTransport(tr *http.Transport, connections int) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: probes(), Control: bearSilence}
	tr.DialContext = dialer.DialContext
	tr.Proxy = http.ProxyFromEnvironment
	tr.TLSHandshakeTimeout = tlsTimeout
	tr.ResponseHeaderTimeout = headerTimeout
	tr.IdleConnTimeout = idleTimeout
	tr.MaxIdleConns = 0 // the bound per host is enough: there is one host
	tr.MaxIdleConnsPerHost = connections
	tr.DisableCompression = true
	// HTTP/2 would put all reads on one connection and one window.
	tr.ForceAttemptHTTP2 = false
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(true)
	if tr.TLSClientConfig == nil {
		tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
}

// silence is how long a connection lasts whose other end does not even take what
// is sent, or answer the kernel's probes: when a network was cut, the end of a
// connection may be among what was lost. A request on it does not wait for
// headerTimeout then.
const silence = 13 * time.Second

func probes() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 4}
}

// bearSilence bounds the silence also while bytes are sent again and again, when
// the kernel does not probe (tcp(7), TCP_USER_TIMEOUT).
func bearSilence(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
	}); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// keepRedirects hands a redirect to the SDK as it is: a signature is for one
// host.
func keepRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// observed tells an observer of every attempt.
type observed struct {
	next     http.RoundTripper
	observer ufs.Observer
}

// stallTimeout is how long a body may bring no byte while a reader waits.
const stallTimeout = 30 * time.Second

// errStalled is why a request was canceled by its own reader.
var errStalled = errors.New("the server sends nothing more")

// stallGuard cuts off answers that begin and then stop: neither the transport
// nor the SDK has a bound on that.
type stallGuard struct {
	next  http.RoundTripper
	limit time.Duration
}

// RoundTrip does one attempt.
func (g *stallGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := g.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &guardedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, limit: g.limit}
	return resp, nil
}

// guardedBody cancels its own request when it waits too long.
type guardedBody struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // the body's life is the request's
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer // runs while the server is waited for; nil before that
}

// Read reads the next bytes.
func (b *guardedBody) Read(p []byte) (int, error) {
	if b.timer == nil {
		b.timer = time.AfterFunc(b.limit, func() { b.cancel(errStalled) })
	} else {
		b.timer.Reset(b.limit)
	}
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

// Close ends the request. A body that was read to its end has left its
// connection to the next request; any other takes it along.
func (b *guardedBody) Close() error {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// The operations that observers are told.
const (
	opGet  = "get"
	opHead = "head"
	opList = "list"
)

// RoundTrip does one attempt.
func (o *observed) RoundTrip(req *http.Request) (*http.Response, error) {
	op := opGet
	switch {
	case req.Method == http.MethodHead:
		op = opHead
	case req.URL.Query().Has("list-type"):
		op = opList
	}
	o.observer.Request(op)
	resp, err := o.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	switch {
	case op == opList:
		resp.Body = &observedBody{ReadCloser: resp.Body, count: o.observer.ListBytes}
	case op == opGet && resp.StatusCode/100 == 2: // an error document is no file
		resp.Body = &observedBody{ReadCloser: resp.Body, count: o.observer.FileBytes}
	}
	return resp, nil
}

// observedBody tells of the bytes that were read from it.
type observedBody struct {
	io.ReadCloser
	count func(int64)
}

func (b *observedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.count(int64(n))
	}
	return n, err
}
