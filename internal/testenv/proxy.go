package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// The operations that a CountingProxy tells apart.
const (
	OpGet    = "get"    // bytes of an object
	OpHead   = "head"   // HEAD of anything
	OpList   = "list"   // a listing of a bucket, or of the buckets
	OpPut    = "put"    // PUT and POST
	OpDelete = "delete" // DELETE
)

// maxRequests bounds how many requests a CountingProxy remembers.
const maxRequests = 10000

// proxyConns is how many idle connections to the server a proxy keeps.
const proxyConns = 64

// Request is one request as a CountingProxy saw it.
type Request struct {
	Op     string
	Method string
	Path   string // /bucket/key
	Query  string
	Range  string // the Range header
	Status int    // of the answer; 0 when there was none
	Bytes  int64  // of the answer's body, as read from the server
}

// Counts are sums over the requests that a CountingProxy saw. Requests that a
// fault answered are counted too; their bytes are those of the server alone.
type Counts struct {
	Get, Head, List, Put, Delete int64 // requests
	GetBytes                     int64 // body bytes of object reads, read from the server
	ListBytes                    int64 // body bytes of listings, read from the server
}

// Requests returns the number of requests of all kinds.
func (c Counts) Requests() int64 { return c.Get + c.Head + c.List + c.Put + c.Delete }

// CountingProxy is an HTTP proxy on loopback before an S3 server. Clients use
// Endpoint as the server's; signatures stay valid. It is safe for concurrent
// use.
type CountingProxy struct {
	Endpoint string

	upstream  *url.URL
	server    *http.Server
	transport *http.Transport
	ended     chan struct{} // closed when the server's goroutine has ended

	mu       sync.Mutex
	counts   Counts
	requests []*Request
	hook     func(r *http.Request, op string) Fault
}

// Proxy starts a proxy before upstream, an http:// URL. It is stopped when
// the test ends.
func Proxy(tb testing.TB, upstream string) *CountingProxy {
	tb.Helper()
	p, err := LaunchProxy(tb.Context(), upstream)
	if err != nil {
		tb.Fatalf("start a proxy before %s: %v", upstream, err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Errorf("stop the proxy: %v", err)
		}
	})
	return p
}

// LaunchProxy starts a proxy before upstream, an http:// URL, until Close.
// ctx covers only the start.
func LaunchProxy(ctx context.Context, upstream string) (*CountingProxy, error) {
	u, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("upstream %q: want http://HOST:PORT", upstream)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", loopback(0))
	if err != nil {
		return nil, err
	}
	p := &CountingProxy{
		Endpoint: "http://" + l.Addr().String(),
		upstream: u,
		ended:    make(chan struct{}),
		transport: &http.Transport{
			MaxIdleConns: proxyConns, MaxIdleConnsPerHost: proxyConns,
			DisableCompression: true,
		},
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients that go away in mid-answer are no news
	reverse := &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		ModifyResponse: p.modify,
		ErrorHandler:   badGateway,
		Transport:      p.transport,
		ErrorLog:       quiet,
		BufferPool:     &bufferPool{},
		FlushInterval:  -1, // a slow body must be seen as slow
	}
	p.server = &http.Server{Handler: p.handler(reverse), ErrorLog: quiet, ReadHeaderTimeout: startLimit}
	go func() {
		defer close(p.ended)
		_ = p.server.Serve(l) // it ends by Close alone
	}()
	return p, nil
}

// Close ends the proxy and its connections.
func (p *CountingProxy) Close() error {
	err := p.server.Close()
	<-p.ended
	p.transport.CloseIdleConnections()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Snapshot returns the sums since the start or the last Reset.
func (p *CountingProxy) Snapshot() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Requests returns what is remembered of the requests since the last Reset,
// oldest first: at most the first 10,000.
func (p *CountingProxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Request, len(p.requests))
	for i, r := range p.requests {
		out[i] = *r
	}
	return out
}

// Reset sets the sums to zero and forgets the requests. Requests under way
// are counted as far as they are still to come.
func (p *CountingProxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts, p.requests = Counts{}, nil
}

// Inject sets the hook that decides each request's fault; nil takes it away.
// It is called from many goroutines and must not change the request.
func (p *CountingProxy) Inject(hook func(r *http.Request, op string) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

// exchange is one request on its way.
type exchange struct {
	proxy  *CountingProxy
	fault  Fault
	op     string
	record *Request // guarded by the proxy's lock
}

type exchangeKey struct{}

func (p *CountingProxy) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := p.begin(r)
		if !x.fault.before(w, r, x) {
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
	})
}

// begin counts a request and asks the hook what to do to it.
func (p *CountingProxy) begin(r *http.Request) *exchange {
	op := operation(r)
	x := &exchange{proxy: p, op: op, record: &Request{
		Op: op, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Range: r.Header.Get("Range"),
	}}
	p.mu.Lock()
	hook := p.hook
	switch op {
	case OpGet:
		p.counts.Get++
	case OpHead:
		p.counts.Head++
	case OpList:
		p.counts.List++
	case OpDelete:
		p.counts.Delete++
	default:
		p.counts.Put++
	}
	if len(p.requests) < maxRequests {
		p.requests = append(p.requests, x.record)
	}
	p.mu.Unlock()
	if hook != nil {
		x.fault = hook(r, op)
	}
	return x
}

// badGateway answers for a server that does not.
func badGateway(w http.ResponseWriter, _ *http.Request, _ error) {
	w.WriteHeader(http.StatusBadGateway)
}

// rewrite sends the request to the server with the Host header and the query
// that the client signed.
func (p *CountingProxy) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = p.upstream.Scheme, p.upstream.Host
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	r.Out.Host = r.In.Host
}

func (p *CountingProxy) modify(resp *http.Response) error {
	x, ok := resp.Request.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return errors.New("testenv: a response without its exchange")
	}
	x.answered(resp.StatusCode)
	resp.Body = &countedBody{ReadCloser: resp.Body, exchange: x}
	x.fault.after(resp)
	return nil
}

func (x *exchange) answered(status int) {
	x.proxy.mu.Lock()
	defer x.proxy.mu.Unlock()
	x.record.Status = status
}

func (x *exchange) received(n int) {
	x.proxy.mu.Lock()
	defer x.proxy.mu.Unlock()
	x.record.Bytes += int64(n)
	switch x.op {
	case OpGet:
		x.proxy.counts.GetBytes += int64(n)
	case OpList:
		x.proxy.counts.ListBytes += int64(n)
	}
}

// countedBody counts what is read from the server.
type countedBody struct {
	io.ReadCloser
	exchange *exchange
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.exchange.received(n)
	return n, err
}

// operation tells what a request asks of an S3 server addressed by path. A
// path with one component is a bucket.
func operation(r *http.Request) string {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch r.Method {
	case http.MethodHead:
		return OpHead
	case http.MethodGet:
		if key == "" {
			return OpList
		}
		return OpGet
	case http.MethodDelete:
		return OpDelete
	default:
		return OpPut
	}
}

// bufferPool lends the proxy's copy loops their buffers.
type bufferPool struct{ pool sync.Pool }

const proxyBuffer = 128 << 10

// Get lends a buffer.
func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, proxyBuffer)
}

// Put takes a buffer back.
func (b *bufferPool) Put(p []byte) { b.pool.Put(&p) }
