package ufslimit

import (
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/time/rate"

	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/internal/wait"
	"millrace/ufs"
)

// Bounds of the piece that a limited body is read in, which is the burst of
// the bandwidth too: small enough that readers take turns, large enough that
// turns cost nothing.
const (
	minPiece = 4 * size.KiB
	maxPiece = 1 * size.MiB
)

// Limiter makes requests and bodies wait. It is safe for concurrent use. A nil
// *Limiter lets all pass.
type Limiter struct {
	requests *rate.Limiter // nil: no bound
	bytes    *rate.Limiter // nil: no bound
	piece    int
}

// New returns the limiter of limits, nil when they bound nothing.
func New(limits ufs.Limits) *Limiter {
	if limits == (ufs.Limits{}) {
		return nil
	}
	l := &Limiter{}
	if r := limits.Requests; r > 0 {
		l.requests = rate.NewLimiter(rate.Limit(r), max(1, int(math.Ceil(r))))
	}
	if b := limits.Bandwidth; b > 0 {
		l.piece = int(min(max(b/8, minPiece), maxPiece))
		l.bytes = rate.NewLimiter(rate.Limit(b), l.piece)
	}
	return l
}

// Request waits until one more request may be sent. Its error is the
// context's, or errs.Timeout when the context would end before that.
func (l *Limiter) Request(ctx context.Context) error {
	if l == nil || l.requests == nil {
		return ctx.Err()
	}
	return pay(ctx, l.requests, 1, ufs.OptionMaxRequests)
}

// Body returns body held to the bandwidth. ctx ends the waiting; it is the
// body's own. name says in errors of the waiting what is read.
func (l *Limiter) Body(ctx context.Context, body io.ReadCloser, name string) io.ReadCloser {
	if l == nil || l.bytes == nil {
		return body
	}
	return &limitedBody{ReadCloser: body, ctx: ctx, limiter: l, name: name}
}

// pay takes n of what r gives out, when it is there.
func pay(ctx context.Context, r *rate.Limiter, n int, option string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	turn := r.ReserveN(now, n)
	delay := turn.DelayFrom(now)
	if delay == 0 {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Sub(now) < delay {
		turn.CancelAt(now)
		return errs.E(errs.Timeout, "", "", fmt.Errorf("option %s makes this wait %v, longer than the caller does", option, delay.Round(time.Millisecond)))
	}
	err := wait.For(ctx, delay)
	if err != nil {
		turn.Cancel()
	}
	return err
}

// limitedBody pays for bytes after they came, before it passes them on: what
// is in the way is bounded by one piece per reader.
type limitedBody struct {
	io.ReadCloser
	ctx     context.Context //nolint:containedctx // the reader's life is the request's
	limiter *Limiter
	name    string
	err     error // sticky: bytes that were not passed on are lost
}

// Read reads the next bytes.
func (b *limitedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.limiter.piece)])
	if n == 0 {
		return n, err
	}
	if err := pay(b.ctx, b.limiter.bytes, n, ufs.OptionMaxBandwidth); err != nil {
		b.err = errs.Wrap(err, "read", b.name)
		return 0, b.err
	}
	return n, err
}
