package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progressState is how far something is. Totals may still grow.
type progressState struct {
	doneBytes, totalBytes int64
	doneFiles, totalFiles int64
	final                 bool
}

// progress shows how far something is. update may be called from several
// goroutines and is cheap; end leaves the last state on the screen.
type progress interface {
	update(s progressState)
	end()
}

// progress shows a bar when stderr is a terminal, else a line each few seconds.
func (a *app) progress(what string) progress {
	if isTerminal(a.stderr) {
		return newBar(a.stderr, what)
	}
	return &lines{w: a.stderr, what: what, last: time.Now(), every: 3 * time.Second}
}

func (s progressState) text() string {
	return fmt.Sprintf("%s of %s files, %s of %s", countText(s.doneFiles), countText(s.totalFiles), sizeText(s.doneBytes), sizeText(s.totalBytes))
}

// lines is progress on something that is no terminal.
type lines struct {
	w     io.Writer
	what  string
	every time.Duration

	mu   sync.Mutex
	last time.Time
}

func (l *lines) update(s progressState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); s.final || now.Sub(l.last) >= l.every {
		l.last = now
		_, _ = fmt.Fprintf(l.w, "%s: %s\n", l.what, s.text())
	}
}

func (l *lines) end() {}

// bar is progress on a terminal.
type bar struct {
	p *mpb.Progress
	b *mpb.Bar

	mu    sync.Mutex
	state progressState
}

func newBar(w io.Writer, what string) *bar {
	b := &bar{p: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(150*time.Millisecond), mpb.WithWidth(40))}
	b.b = b.p.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(decor.Name(printable(what), decor.WC{C: decor.DextraSpace}), decor.Any(b.percent, decor.WC{W: 5})),
		mpb.AppendDecorators(decor.Any(b.text), decor.Name(" "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	return b
}

func (b *bar) get() progressState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

func (b *bar) text(decor.Statistics) string { return b.get().text() }

func (b *bar) percent(decor.Statistics) string {
	s := b.get()
	if s.totalBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", 100*s.doneBytes/s.totalBytes)
}

func (b *bar) update(s progressState) {
	b.mu.Lock()
	if s.doneFiles < b.state.doneFiles && !s.final {
		s.doneFiles = b.state.doneFiles // an update that was overtaken
	}
	b.state = s
	b.mu.Unlock()
	b.b.SetTotal(max(s.totalBytes, 1), false)
	b.b.SetCurrent(s.doneBytes)
}

func (b *bar) end() {
	b.b.Abort(false)
	b.p.Wait()
}

// randomText is a short name that nobody else has.
func randomText() string { return rand.Text()[:12] }
