package s3fs

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"

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
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: idleTimeout}
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

// keepRedirects hands a redirect to the SDK as it is: a signature is for one
// host.
func keepRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// observed tells an observer of every attempt.
type observed struct {
	next     http.RoundTripper
	observer ufs.Observer
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
