package rig

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
)

// Requests are counts of requests that an S3 server answered.
type Requests struct {
	Gets   int64 // of objects
	Heads  int64 // of objects
	Others int64
}

// Sub returns the requests since an earlier count.
func (r Requests) Sub(o Requests) Requests {
	return Requests{Gets: r.Gets - o.Gets, Heads: r.Heads - o.Heads, Others: r.Others - o.Others}
}

// CountRequests reads versitygw's access log to its present end: a line a
// request, in the layout of Amazon's server access logs, with operations
// named "s3_GetObject".
func CountRequests(path string) (Requests, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Requests{}, nil // nothing was asked yet
	} else if err != nil {
		return Requests{}, err
	}
	defer f.Close()
	var r Requests
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		switch line := lines.Bytes(); {
		case bytes.Contains(line, []byte(" s3_GetObject ")):
			r.Gets++
		case bytes.Contains(line, []byte(" s3_HeadObject ")):
			r.Heads++
		case bytes.Contains(line, []byte(" s3_")):
			r.Others++
		}
	}
	if err := lines.Err(); err != nil {
		return Requests{}, fmt.Errorf("access log: %w", err)
	}
	return r, nil
}
