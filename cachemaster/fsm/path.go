package fsm

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Path is a path of the namespace, of any bytes. In JSON, "%" and bytes that
// are not valid UTF-8 are escaped as "%XX", since JSON has no other bytes.
type Path string

// MarshalText escapes the path.
func (p Path) MarshalText() ([]byte, error) {
	if utf8.ValidString(string(p)) && !strings.Contains(string(p), "%") {
		return []byte(p), nil
	}
	b := make([]byte, 0, len(p)+16)
	for s := string(p); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		if r == '%' || (r == utf8.RuneError && n == 1) {
			b = fmt.Appendf(b, "%%%02X", s[0])
		} else {
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return b, nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *Path) UnmarshalText(text []byte) error {
	b := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b = append(b, text[i])
			continue
		}
		if i+2 >= len(text) {
			return fmt.Errorf("path %q: an escape is cut off", text)
		}
		v, err := strconv.ParseUint(string(text[i+1:i+3]), 16, 8)
		if err != nil {
			return fmt.Errorf("path %q: %w", text, err)
		}
		b = append(b, byte(v))
		i += 2
	}
	*p = Path(b)
	return nil
}
