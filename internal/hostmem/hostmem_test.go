package hostmem

import (
	"testing"
	"testing/fstest"
)

func files(m map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n")}}
	for name, text := range m {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

func TestRead(t *testing.T) {
	const kB = 1024
	for _, c := range []struct {
		name  string
		files map[string]string
		want  Memory
	}{
		{"a machine", nil, Memory{Total: 1000 * kB, Available: 600 * kB}},
		{"no limit", map[string]string{
			"proc/self/cgroup":              "0::/user\n",
			"sys/fs/cgroup/user/memory.max": "max\n",
		}, Memory{Total: 1000 * kB, Available: 600 * kB}},
		{"a limit above the machine", map[string]string{
			"proc/self/cgroup":                           "4:memory:/a\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, Memory{Total: 1000 * kB, Available: 600 * kB}},
		{"version 2, its own group and one above", map[string]string{
			"proc/self/cgroup":                   "0::/a/b\n",
			"sys/fs/cgroup/a/memory.max":         "409600\n",
			"sys/fs/cgroup/a/memory.current":     "307200\n",
			"sys/fs/cgroup/a/memory.stat":        "anon 5\ninactive_file 102400\n",
			"sys/fs/cgroup/a/b/memory.max":       "512000\n",
			"sys/fs/cgroup/a/b/memory.current":   "10240\n",
			"sys/fs/cgroup/memory.max":           "max\n",
			"sys/fs/cgroup/another/b/memory.max": "1\n",
		}, Memory{Total: 400 * kB, Available: 200 * kB, Limited: true}},
		{"version 1 beside an empty version 2", map[string]string{
			"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/x\n0::/\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "204800\n",
			"sys/fs/cgroup/memory/x/memory.usage_in_bytes": "102400\n",
			"sys/fs/cgroup/memory/x/memory.stat":           "inactive_file 1\ntotal_inactive_file 51200\n",
		}, Memory{Total: 200 * kB, Available: 150 * kB, Limited: true}},
		{"a container that sees the host's path", map[string]string{
			"proc/self/cgroup":             "0::/docker/0123\n",
			"sys/fs/cgroup/memory.max":     "102400\n",
			"sys/fs/cgroup/memory.current": "204800\n",
		}, Memory{Total: 100 * kB, Limited: true}},
	} {
		got, err := read(files(c.files))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestReadFails(t *testing.T) {
	if m, err := read(fstest.MapFS{}); err == nil {
		t.Errorf("without /proc: %+v", m)
	}
	if m, err := read(fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal: many kB\n")}}); err == nil {
		t.Errorf("of nonsense: %+v", m)
	}
}

// This machine has some memory.
func TestReadHere(t *testing.T) {
	m, err := Read()
	if err != nil || m.Total <= 0 || m.Available < 0 || m.Available > m.Total {
		t.Errorf("%+v, %v", m, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("MemTotal: 5 kB\nMemAvailable: -7 kB\n", "0::/a/../b\n4:memory\n", "max", "x 9223372036854775807\n")
	f.Add("MemTotal: 9223372036854775807 kB", ":::", "-5", "")
	f.Fuzz(func(t *testing.T, info, cgroup, limit, stat string) {
		fsys := fstest.MapFS{
			"proc/meminfo": {Data: []byte(info)}, "proc/self/cgroup": {Data: []byte(cgroup)},
			"sys/fs/cgroup/memory.max": {Data: []byte(limit)}, "sys/fs/cgroup/memory.stat": {Data: []byte(stat)},
		}
		if m, err := read(fsys); err == nil && (m.Total <= 0 || m.Available < 0 || m.Available > m.Total) {
			t.Errorf("%+v", m)
		}
	})
}
