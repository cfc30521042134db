package size

import (
	"fmt"
	"strings"
	"time"
)

// Duration is a length of time that is not negative. In configuration files,
// environment variables and flags it is written as "30s", "1h30m" or "250ms".
// It implements encoding.TextMarshaler, encoding.TextUnmarshaler and
// pflag.Value.
type Duration time.Duration

// ParseDuration reads what time.ParseDuration reads, except what is negative.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	switch {
	case err != nil:
		return 0, fmt.Errorf("duration %q: want a length of time like 30s, 250ms or 1h30m", s)
	case d < 0:
		return 0, fmt.Errorf("duration %q is negative", s)
	}
	return Duration(d), nil
}

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns the length of time without units that are zero: "1m", "30s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText returns what String returns.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error { return d.Set(string(text)) }

// Set reads what ParseDuration reads. On an error d is unchanged.
func (d *Duration) Set(s string) error {
	v, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// Type names the kind of value in a command's help.
func (d Duration) Type() string { return "duration" }
