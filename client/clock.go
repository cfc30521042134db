package client

import "time"

// clock tells the time since the client began, an hour more, so that 0 is long
// ago: what is kept by it stays where it is when the clock of the host jumps.
type clock struct{ zero time.Time }

func newClock() clock { return clock{time.Now().Add(-time.Hour)} }

// now is in nanoseconds.
func (c clock) now() int64 { return int64(time.Since(c.zero)) }
