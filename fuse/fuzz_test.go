package fuse

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// FuzzParseOptions: options that are taken make a configuration that
// validates, and say the same a second time.
func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"allow_other,uid=0,gid=4294967294,umask=0022", "ro,,nonempty", "umask=0o777", "uid=-1", "rw", "umask=9", "x=y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, options string) {
		c, err := ParseOptions(DefaultConfig(), options)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q: %v", options, err)
		}
		if again, err := ParseOptions(c, options); err != nil || again.UID != c.UID || again.Umask != c.Umask {
			t.Errorf("%q a second time: %+v, %v", options, again, err)
		}
	})
}

// FuzzSource: what a mount says of itself in the mount table is read back, and
// a source that is taken leads to a clean absolute path.
func FuzzSource(f *testing.F) {
	f.Add("millrace://10.0.0.1:1,[::1]:2/a%20b", "/a b", "h:1")
	f.Add("millrace:///%zz", "/", "")
	f.Fuzz(func(t *testing.T, source, root, master string) {
		if _, to, ok := parseSource(source); ok && !strings.HasPrefix(to, "/") {
			t.Errorf("%q leads to %q", source, to)
		}
		if path.Clean("/"+root) != root || !hostPort(master) {
			return
		}
		masters := []string{master}
		if master == "" {
			masters = nil
		}
		got, to, ok := parseSource(sourceOf(masters, root))
		if !ok || to != root || !slices.Equal(got, masters) {
			t.Errorf("%q of %q, %q became %q, %q, %v", sourceOf(masters, root), masters, root, got, to, ok)
		}
	})
}

// hostPort reports whether s is made of what host names and ports are.
func hostPort(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune(".:-_", r)
	})
}

// FuzzStatusDoomed: no /proc/PID/status makes the reader panic, and only one
// with a signal or a dead state says that the process ends.
func FuzzStatusDoomed(f *testing.F) {
	f.Add("State:\tS (sleeping)\nSigPnd:\t0000000000000100\n")
	f.Add("State:\tZ\n")
	f.Fuzz(func(t *testing.T, status string) {
		doomed := statusDoomed([]byte(status))
		if doomed && !strings.Contains(status, "State") && !strings.Contains(status, "Pnd") {
			t.Errorf("%q", status)
		}
	})
}
