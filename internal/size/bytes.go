package size

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Bytes is an amount of bytes. In configuration files, environment variables
// and flags it is written as "64MiB" (powers of 1024), "10GB" (powers of
// 1000) or "1048576". It implements encoding.TextMarshaler,
// encoding.TextUnmarshaler and pflag.Value.
type Bytes int64

// Binary units.
const (
	KiB Bytes = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
	PiB
	EiB
)

type unit struct {
	name  string
	bytes int64
}

// units returns the units of text, those for printing first and ascending.
func units() []unit {
	return []unit{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"TiB", 1 << 40},
		{"PiB", 1 << 50},
		{"EiB", 1 << 60},
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"TB", 1e12},
		{"PB", 1e15},
		{"EB", 1e18},
		{"B", 1},
		{"", 1},
	}
}

// ParseBytes reads an amount as people write it: a number that is not
// negative, with or without a decimal point, and a unit from B, KB to EB and
// KiB to EiB in any case. The amount must be a whole number of bytes below
// 8 EiB.
func ParseBytes(s string) (Bytes, error) {
	text := strings.TrimSpace(s)
	digits := len(text)
	for i, r := range text {
		if (r < '0' || r > '9') && r != '.' && r != '_' {
			digits = i
			break
		}
	}
	number, name := text[:digits], strings.TrimSpace(text[digits:])
	factor := int64(0)
	for _, u := range units() {
		if strings.EqualFold(u.name, name) {
			factor = u.bytes
		}
	}
	if factor == 0 || !wellFormed(number) {
		return 0, fmt.Errorf("size %q: want a number of bytes like 64MiB, 10GB or 1048576", s)
	}
	r, ok := new(big.Rat).SetString(strings.ReplaceAll(number, "_", ""))
	if !ok {
		return 0, fmt.Errorf("size %q: want a number of bytes like 64MiB, 10GB or 1048576", s)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	switch {
	case !r.IsInt():
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	case !r.Num().IsInt64():
		return 0, fmt.Errorf("size %q is more than %d bytes", s, int64(math.MaxInt64))
	}
	return Bytes(r.Num().Int64()), nil
}

// wellFormed reports whether s is digits with at most one point, which has
// digits on both sides, and underscores between digits only. Its length is
// bounded, so that a hostile number costs nothing.
func wellFormed(s string) bool {
	if len(s) > 64 || strings.Count(s, ".") > 1 {
		return false
	}
	isDigit := func(i int) bool { return i >= 0 && i < len(s) && s[i] >= '0' && s[i] <= '9' }
	for i := range len(s) {
		if !isDigit(i) && (!isDigit(i-1) || !isDigit(i+1)) {
			return false
		}
	}
	return s != ""
}

// String returns the amount in the largest binary unit that divides it, or
// the plain number: "64MiB", "1000".
func (b Bytes) String() string {
	best := unit{"", 1}
	for _, u := range units()[:6] {
		if b != 0 && int64(b)%u.bytes == 0 {
			best = u
		}
	}
	return strconv.FormatInt(int64(b)/best.bytes, 10) + best.name
}

// MarshalText returns what String returns.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what ParseBytes reads.
func (b *Bytes) UnmarshalText(text []byte) error { return b.Set(string(text)) }

// Set reads what ParseBytes reads. On an error b is unchanged.
func (b *Bytes) Set(s string) error {
	v, err := ParseBytes(s)
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// Type names the kind of value in a command's help.
func (b Bytes) Type() string { return "size" }
