package testenv

import (
	"fmt"
	"io"
	"net/http"
	"time"
)

// Fault is what a CountingProxy does to one request. The zero Fault lets it
// pass. Fields combine: a request may be delayed and then refused.
type Fault struct {
	// Hold keeps the request back until it is closed or the client gives up.
	Hold <-chan struct{}
	// Delay keeps the request back for a time.
	Delay time.Duration
	// Disconnect closes the client's connection without an answer.
	Disconnect bool
	// Status answers with this HTTP status instead of asking the server, with
	// an S3 error document of Code, "InternalError" if that is empty.
	Status int
	Code   string
	// Cut ends the server's answer after this many bytes of body and closes
	// the connection; 0 leaves the answer whole. To cut at once, use CutAll.
	Cut int64
	// SetHeaders are set in the server's answer; an empty value deletes.
	SetHeaders map[string]string
	// Modify changes the server's answer in any other way.
	Modify func(resp *http.Response)
}

// CutAll as Fault.Cut sends the head of the answer and nothing of its body.
const CutAll int64 = -1

// before does what happens ahead of the server. It reports whether the server
// is to be asked.
func (f Fault) before(w http.ResponseWriter, r *http.Request, x *exchange) bool {
	if f.Hold != nil {
		select {
		case <-f.Hold:
		case <-r.Context().Done():
			return false
		}
	}
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return false
		}
	}
	if f.Disconnect {
		panic(http.ErrAbortHandler) // net/http's way to close the connection
	}
	if f.Status == 0 {
		return true
	}
	x.answered(f.Status)
	code := f.Code
	if code == "" {
		code = "InternalError"
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(f.Status)
	if r.Method != http.MethodHead {
		// The client may be gone; then there is nobody to tell.
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>injected</Message></Error>`, code)
	}
	return false
}

// after does what happens to the server's answer.
func (f Fault) after(resp *http.Response) {
	for k, v := range f.SetHeaders {
		if v == "" {
			resp.Header.Del(k)
			continue
		}
		resp.Header.Set(k, v)
	}
	switch {
	case f.Cut > 0:
		resp.Body = &cutBody{ReadCloser: resp.Body, left: f.Cut}
	case f.Cut < 0:
		resp.Body = &cutBody{ReadCloser: resp.Body}
	}
	if f.Modify != nil {
		f.Modify(resp)
	}
}

// cutBody fails after some bytes, on which the proxy drops the connection.
type cutBody struct {
	io.ReadCloser
	left int64
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
