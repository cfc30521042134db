package s3fs

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"millrace/internal/errs"
)

// pages are the pages of a listing, in order, at most one of them fetched ahead.
// Used by one goroutine.
type pages struct {
	store   *Store
	in      s3.ListObjectsV2Input
	more    bool                   // there is another page
	fetch   func() <-chan pageDone // starts the request of in
	pending <-chan pageDone        // the page under way; nil: none
}

// pageDone is a page, or why there is none.
type pageDone struct {
	page *page
	err  error
}

// begin makes the pages ready. The function that it returns ends the request
// that may be under way and waits for that.
func (p *pages) begin(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	p.fetch = func() <-chan pageDone {
		in := p.in
		done := make(chan pageDone, 1)
		go func() {
			page, err := p.store.listPage(ctx, &in)
			done <- pageDone{page: page, err: err}
		}()
		return done
	}
	return func() {
		cancel()
		if p.pending != nil {
			<-p.pending
		}
	}
}

// prefetch asks for the next page, if there is one and nobody has yet.
func (p *pages) prefetch() {
	if p.pending == nil && p.more {
		p.pending = p.fetch()
	}
}

// next returns the next page. Errors of the SDK come as they are.
func (p *pages) next() (*page, error) {
	p.prefetch()
	done := <-p.pending
	p.pending = nil
	if done.err != nil {
		return nil, done.err
	}
	if p.more = done.page.more; p.more {
		token := done.page.token
		if token == "" || token == aws.ToString(p.in.ContinuationToken) {
			// What the page holds may be true, but the listing is not whole.
			return nil, errs.E(errs.Unavailable, "", "", errors.New("the server says that there is more, but not where"))
		}
		p.in.ContinuationToken = &token
	}
	return done.page, nil
}
