package cachemaster

import (
	"context"
	"io"
	"log/slog"
	"slices"

	"github.com/hashicorp/go-hclog"
)

// newRaftLogger returns a logger for the Raft library that writes to log what
// is a warning or worse.
func newRaftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(slogSink{log: log})
	return l
}

// slogSink passes what the Raft library logs on to slog.
type slogSink struct{ log *slog.Logger }

// Accept implements hclog.SinkAdapter.
func (s slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level < hclog.Warn {
		return
	}
	out := slog.LevelWarn
	switch {
	case ordinary(msg):
		out = slog.LevelDebug
	case level >= hclog.Error:
		out = slog.LevelError
	}
	s.log.Log(context.Background(), out, "raft", append([]any{"message", msg}, args...)...)
}

// ordinary reports whether the library calls a warning what belongs to each
// start and stop of a master.
func ordinary(msg string) bool {
	return slices.Contains([]string{
		"heartbeat timeout reached, starting election",
		"no known peers, aborting election",
		"unable to get address for server, using fallback address",
	}, msg)
}
