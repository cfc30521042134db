package fuse

import (
	"bufio"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	fsSubtype  = "millrace"
	fsType     = "fuse." + fsSubtype
	mountTable = "/proc/self/mountinfo"
	scheme     = "millrace"
)

// mountEntry is one line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type mountEntry struct {
	major, minor uint32 // of the device number
	root         string // path within the file system that is mounted here
	point        string // where
	fsType       string
	source       string
}

func (m *mountEntry) ours() bool { return m.fsType == fsType }

// mounts returns the mounts of this process's namespace, in order: of two on
// one mount point the later one is seen.
func mounts() ([]mountEntry, error) {
	f, err := os.Open(mountTable)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var all []mountEntry
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if m, ok := parseMountLine(s.Text()); ok {
			all = append(all, m)
		}
	}
	return all, s.Err()
}

// parseMountLine reads a line; ok is false for one that is not well formed.
func parseMountLine(line string) (m mountEntry, ok bool) {
	head, tail, found := strings.Cut(line, " - ")
	if !found {
		return mountEntry{}, false
	}
	h, t := strings.Fields(head), strings.Fields(tail)
	if len(h) < 6 || len(t) < 2 {
		return mountEntry{}, false
	}
	majorText, minorText, _ := strings.Cut(h[2], ":")
	major, err1 := strconv.ParseUint(majorText, 10, 32)
	minor, err2 := strconv.ParseUint(minorText, 10, 32)
	if err1 != nil || err2 != nil {
		return mountEntry{}, false
	}
	return mountEntry{
		major: uint32(major), minor: uint32(minor),
		root: unescape(h[3]), point: unescape(h[4]),
		fsType: unescape(t[0]), source: unescape(t[1]),
	}, true
}

// unescape undoes the kernel's octal escapes: \040 is a space.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// topmost returns the mount that is seen at a mount point; ok is false if
// there is none.
func topmost(all []mountEntry, point string) (m mountEntry, ok bool) {
	for _, e := range all {
		if e.point == point {
			m, ok = e, true
		}
	}
	return m, ok
}

// covering returns the mount that an absolute, clean path is on, as far as
// names tell, which symbolic links may contradict.
func covering(all []mountEntry, name string) (m mountEntry, rest string, ok bool) {
	for _, e := range all {
		r, below := cutDir(name, e.point)
		if below && (!ok || len(e.point) >= len(m.point)) {
			m, rest, ok = e, r, true
		}
	}
	return m, rest, ok
}

// cutDir returns what of name is below dir, without a leading slash.
func cutDir(name, dir string) (rest string, below bool) {
	if dir == "/" {
		return strings.TrimPrefix(name, "/"), true
	}
	rest, below = strings.CutPrefix(name, dir)
	if !below || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// sourceOf returns the first column of the mount table for a mount: where the
// masters are, and the path of the namespace that is mounted.
func sourceOf(masters []string, root string) string {
	u := url.URL{Scheme: scheme, Host: strings.Join(masters, ","), Path: root}
	return u.String()
}

func parseSource(source string) (masters []string, root string, ok bool) {
	rest, ok := strings.CutPrefix(source, scheme+"://")
	if !ok {
		return nil, "", false
	}
	hosts, escaped, found := strings.Cut(rest, "/")
	root, err := url.PathUnescape("/" + escaped)
	if !found || err != nil {
		return nil, "", false
	}
	if hosts != "" {
		masters = strings.Split(hosts, ",")
	}
	return masters, path.Clean(root), true
}

// Place is where a path of this host lies in a cluster's namespace.
type Place struct {
	MountPoint string
	Path       string   // in the namespace
	Masters    []string // gRPC addresses; empty if the mount does not tell
}

// Lookup maps a path below a Millrace mount of this host to the namespace. It
// reads the mount table and asks no mount, so that it works on a dead one
// too; ok is false if the path is not below one.
func Lookup(name string) (p Place, ok bool) {
	name, err := filepath.Abs(name)
	if err != nil {
		return Place{}, false
	}
	all, err := mounts()
	if err != nil {
		return Place{}, false
	}
	if p, ok = place(all, name); ok {
		return p, true
	}
	// A symbolic link may lead there: resolve the directory, for the name
	// itself need not exist.
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return Place{}, false
	}
	if p, ok = place(all, filepath.Join(dir, filepath.Base(name))); ok {
		return p, true
	}
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return Place{}, false
	}
	return place(all, name)
}

func place(all []mountEntry, name string) (Place, bool) {
	m, rest, ok := covering(all, name)
	if !ok || !m.ours() {
		return Place{}, false
	}
	masters, root, ok := parseSource(m.source)
	if !ok {
		return Place{}, false
	}
	// m.root differs from "/" for a bind mount of a directory of the mount.
	return Place{MountPoint: m.point, Path: path.Join(root, m.root, rest), Masters: masters}, true
}

// Places returns the Millrace mounts of this host, also dead ones, in the
// order in which they were made.
func Places() ([]Place, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var found []Place
	for _, m := range all {
		if p, ok := place(all, m.point); ok && m.ours() && p.MountPoint == m.point {
			found = append(found, p)
		}
	}
	return found, nil
}
