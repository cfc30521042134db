package trial

import (
	"math/rand/v2"
	"net/http"
	"time"

	"millrace/internal/testenv"
)

// Answer is a way of an S3 server to fail a request.
type Answer struct {
	What  string
	fault testenv.Fault
}

// Answers returns all of them.
func Answers() []Answer {
	return []Answer{
		{"503 SlowDown", testenv.Fault{Status: http.StatusServiceUnavailable, Code: "SlowDown"}},
		{"500", testenv.Fault{Status: http.StatusInternalServerError}},
		{"cut bodies", testenv.Fault{Cut: 10_000}},
		{"disconnects", testenv.Fault{Disconnect: true}},
		{"slow answers", testenv.Fault{Delay: 400 * time.Millisecond}},
	}
}

// Inject lets one in so many requests fail so, at random, until the proxy is
// told otherwise.
func (a Answer) Inject(proxy *testenv.CountingProxy, share int) {
	proxy.Inject(func(*http.Request, string) testenv.Fault {
		if rand.IntN(share) == 0 {
			return a.fault
		}
		return testenv.Fault{}
	})
}
