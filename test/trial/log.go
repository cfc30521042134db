package trial

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Log tells what happens, with the time since it began, and counts it. It is
// safe for concurrent use.
type Log struct {
	begun time.Time

	mu     sync.Mutex
	w      io.Writer
	counts map[string]int
	order  []string // of the first time
}

// NewLog returns a log that begins now.
func NewLog(w io.Writer) *Log { return &Log{begun: time.Now(), w: w, counts: map[string]int{}} }

// Since returns how long ago it began.
func (l *Log) Since() time.Duration { return time.Since(l.begun) }

// Say tells something.
func (l *Log) Say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, "%7.1fs  %s\n", l.Since().Seconds(), fmt.Sprintf(format, args...)) // nobody may be reading
}

// Count counts an event and does not tell it.
func (l *Log) Count(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[event]++; l.counts[event] == 1 {
		l.order = append(l.order, event)
	}
}

// Happen tells and counts an event.
func (l *Log) Happen(event string) {
	l.Count(event)
	l.Say("%s", event)
}

// HappenTo tells an event and whom it happened to, and counts it.
func (l *Log) HappenTo(whom, event string) {
	l.Count(event)
	l.Say("%s: %s", event, whom)
}

// Sum prints how often each event happened, in the order of the first times.
func (l *Log) Sum() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintln(l.w, "done:") // nobody may be reading
	for _, event := range l.order {
		_, _ = fmt.Fprintf(l.w, "  %5d x %s\n", l.counts[event], event) // nobody may be reading
	}
}
