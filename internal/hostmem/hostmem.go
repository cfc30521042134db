// Package hostmem tells how much memory this process may use: that of the
// machine, or of the smallest control group around it, as in a container.
package hostmem

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Memory is what there is, in bytes.
type Memory struct {
	Total     int64 // all that may ever be used
	Available int64 // of Total: what can be taken now, page caches given up for it
	Limited   bool  // Total is the limit of a control group
}

// Read asks the kernel.
func Read() (Memory, error) { return read(os.DirFS("/")) }

func read(fsys fs.FS) (Memory, error) {
	info, err := numbers(fsys, "proc/meminfo")
	if err != nil {
		return Memory{}, fmt.Errorf("how much memory there is: %w", err)
	}
	const kB = 1024
	m := Memory{Total: info["MemTotal:"] * kB, Available: info["MemAvailable:"] * kB}
	if m.Total <= 0 {
		return Memory{}, errors.New("how much memory there is: /proc/meminfo does not say")
	}
	for _, g := range groups(fsys) {
		limit, ok := number(fsys, path.Join(g.dir, g.limit))
		if !ok || limit <= 0 {
			continue // no limit
		}
		if limit < m.Total {
			m.Total, m.Limited = limit, true
		}
		used, _ := number(fsys, path.Join(g.dir, g.usage)) // without it, all is free as far as we know
		stat, err := numbers(fsys, path.Join(g.dir, "memory.stat"))
		if err == nil {
			used -= stat[g.inactive] // the kernel takes these first
		}
		m.Available = min(m.Available, max(limit-max(used, 0), 0))
	}
	m.Available = max(min(m.Available, m.Total), 0)
	return m, nil
}

// group is a control group that may limit memory, with its files' names.
type group struct{ dir, limit, usage, inactive string }

// groups are those that this process is in, of both versions, and all above
// them. In a container, the path may be that of the host, and the group itself
// what is mounted at the top.
func groups(fsys fs.FS) []group {
	b, err := fs.ReadFile(fsys, "proc/self/cgroup")
	if err != nil {
		return nil // no control groups
	}
	var list []group
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, at, _ := strings.Cut(rest, ":")
		g := group{limit: "memory.max", usage: "memory.current", inactive: "inactive_file"}
		top := "sys/fs/cgroup"
		switch {
		case controllers == "":
		case strings.Contains(","+controllers+",", ",memory,"):
			top = "sys/fs/cgroup/memory"
			g = group{limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", inactive: "total_inactive_file"}
		default:
			continue
		}
		for at = path.Clean("/" + at); ; at = path.Dir(at) {
			g.dir = path.Join(top, at)
			list = append(list, g)
			if at == "/" {
				break
			}
		}
	}
	return list
}

// number reads a file that holds one; "max" and what cannot be read is none.
func number(fsys fs.FS, name string) (int64, bool) {
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

// numbers reads a file of lines that are a name, a number and perhaps a unit.
func numbers(fsys fs.FS, name string) (map[string]int64, error) {
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	list := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 2 {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				list[f[0]] = n
			}
		}
	}
	return list, nil
}
