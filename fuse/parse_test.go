package fuse

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/internal/errs"
)

func TestErrno(t *testing.T) {
	want := map[errs.Kind]syscall.Errno{
		errs.Unknown: syscall.EIO, errs.NotFound: syscall.ENOENT, errs.Permission: syscall.EACCES,
		errs.Stale: syscall.ESTALE, errs.Invalid: syscall.EINVAL, errs.Exists: syscall.EEXIST,
		errs.NotDir: syscall.ENOTDIR, errs.IsDir: syscall.EISDIR, errs.NotEmpty: syscall.ENOTEMPTY,
		errs.NoSpace: syscall.ENOSPC, errs.NotLeader: syscall.EIO, errs.Corrupt: syscall.EIO,
		errs.Unavailable: syscall.EIO, errs.Throttled: syscall.EIO, errs.Timeout: syscall.EIO,
		errs.Canceled: syscall.EINTR, errs.Unsupported: syscall.EOPNOTSUPP, errs.ReadOnly: syscall.EROFS,
		errs.NotCached: syscall.EIO, errs.Busy: syscall.EBUSY, errs.Internal: syscall.EIO, 4711: syscall.EIO,
	}
	for kind, errno := range want {
		if got := Errno(kind); got != errno {
			t.Errorf("%v: %v, want %v", kind, got, errno)
		}
	}
}

func TestFaultLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := newFaultLog(slog.New(slog.NewTextHandler(&out, nil)))
		lines := func() int { return strings.Count(out.String(), "\n") }
		if st := l.status("read", "/x", nil); st != gofuse.OK {
			t.Error(st)
		}
		for range 3 {
			if st := l.status("read", "/x", errs.E(errs.Unavailable, "read", "/x", nil)); st != gofuse.EIO {
				t.Error(st)
			}
		}
		if st := l.status("read", "/y", errs.NotFound); st != gofuse.ENOENT {
			t.Error(st)
		}
		if lines() != 1 {
			t.Errorf("log:\n%s", out.String())
		}
		time.Sleep(faultEvery)
		l.status("read", "/x", errors.New("what is this"))
		if lines() != 2 {
			t.Errorf("log:\n%s", out.String())
		}
		for i := range 10 * faultPaths {
			l.status("read", fmt.Sprint(i), io.ErrUnexpectedEOF)
		}
		if n := lines(); n > 50 || len(l.last) > faultPaths {
			t.Errorf("%d lines, %d paths", n, len(l.last))
		}
	})
}

func TestParseOptions(t *testing.T) {
	got, err := ParseOptions(DefaultConfig(), "allow_other,uid=7, gid=8 ,umask=077,ro,nonempty,no_open,passthrough=off,read_ahead=4MiB,,")
	want := DefaultConfig()
	want.AllowOther, want.NonEmpty, want.NoOpen, want.UID, want.GID, want.Umask, want.Passthrough, want.ReadAhead = true, true, true, 7, 8, "077", PassthroughOff, 4<<20
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for options, names := range map[string][]string{
		"noatime2,allow_other": {"noatime2"},
		"no_open=yes":          {"no_open"},
		"passthrough=on":       {"passthrough=on", "auto or off"},
		"rw":                   {"rw", "read-only"},
		"uid=":                 {"uid"},
		"uid=root":             {"uid=root"},
		"uid=4294967295":       {"uid=4294967295"},
		"gid=-1":               {"gid=-1"},
		"umask=8":              {"umask"},
		"read_ahead=much":      {"read_ahead"},
		"umask=1000":           {"umask"},
		"allow_other=yes":      {"allow_other"},
	} {
		_, err := ParseOptions(DefaultConfig(), options)
		if err == nil {
			t.Errorf("%s: no error", options)
			continue
		}
		for _, name := range names {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%s: error %q does not name %s", options, err, name)
			}
		}
	}
}

func TestConfigValidate(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	bad := Config{UID: -2, GID: 1 << 40, Umask: "9", UnmountTimeout: -1}
	err := bad.Validate()
	for _, field := range []string{"uid", "gid", "umask", "passthrough", "read_ahead", "max_background", "unmount_timeout"} {
		if err == nil || !strings.Contains(err.Error(), "fuse."+field+":") {
			t.Errorf("error does not name %s: %v", field, err)
		}
	}
}

const sampleMounts = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 22 0:40 / /mnt/x ro,nosuid,nodev,relatime shared:7 - fuse.millrace millrace://127.0.0.1:7760/data%20set ro,user_id=0
37 36 0:41 / /mnt/x/inner rw - tmpfs tmpfs rw
38 22 0:40 /sub\040dir /srv/bound ro - fuse.millrace millrace://127.0.0.1:7760/data%20set ro
39 22 0:42 / /mnt/two ro - fuse.millrace millrace:///alone ro
40 22 0:43 / /mnt/other rw - fuse.sshfs host:/x rw
not a line
41 22 0:x / /broken - y z
`

func TestMountinfo(t *testing.T) {
	all, err := parseMountinfo(strings.NewReader(sampleMounts))
	if err != nil || len(all) != 6 {
		t.Fatal(err, all)
	}
	if m, ok := topmost(all, "/mnt/x"); !ok || !m.ours() || m.minor != 40 {
		t.Errorf("%+v %v", m, ok)
	}
	masters := []string{"127.0.0.1:7760"}
	for name, want := range map[string]*Place{
		"/mnt/x":                   {"/mnt/x", "/data set", masters},
		"/mnt/x/a/b":               {"/mnt/x", "/data set/a/b", masters},
		"/mnt/x/inner/y":           nil,
		"/mnt/xy":                  nil,
		"/":                        nil,
		"/srv/bound/q":             {"/srv/bound", "/data set/sub dir/q", masters},
		"/mnt/two/z":               {"/mnt/two", "/alone/z", nil},
		"/mnt/other/z":             nil,
		"/mnt/x/innermost/or else": {"/mnt/x", "/data set/innermost/or else", masters},
	} {
		got, ok := place(all, name)
		if ok != (want != nil) {
			t.Errorf("%s: %v %+v", name, ok, got)
		} else if want != nil {
			if diff := cmp.Diff(*want, got); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

func TestSource(t *testing.T) {
	for _, root := range []string{"/", "/a/b c", "/100%/ü/\xff?#"} {
		for _, masters := range [][]string{nil, {"10.0.0.1:1"}, {"10.0.0.1:1", "[::1]:2"}} {
			m, r, ok := parseSource(sourceOf(masters, root))
			if !ok || r != root || cmp.Diff(masters, m) != "" {
				t.Errorf("%q: %v %q %v", sourceOf(masters, root), m, r, ok)
			}
		}
	}
	for _, bad := range []string{"", "millrace", "millrace://", "host:/x", "millrace://a/%zz"} {
		if _, _, ok := parseSource(bad); ok {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	for line := range strings.SplitSeq(sampleMounts, "\n") {
		f.Add(line)
	}
	f.Fuzz(func(_ *testing.T, line string) {
		m, ok := parseMountLine(line)
		if ok {
			place([]mountEntry{m}, m.point)
		}
	})
}

func TestStatusDoomed(t *testing.T) {
	for text, want := range map[string]bool{
		"Name:\tx\nState:\tS (sleeping)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n": false,
		"State:\tS (sleeping)\nSigPnd:\t0000000000010000\nShdPnd:\t0000000000000000\n":           false,
		"State:\tS (sleeping)\nSigPnd:\t0000000000000100\n":                                      true,
		"State:\tS (sleeping)\nShdPnd:\t0000000000010100\n":                                      true,
		"State:\tZ (zombie)\n": true,
		"":                     false,
		"SigPnd: what\n":       false,
	} {
		if got := statusDoomed([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if doomed(0) {
		t.Error("a process that cannot be seen is not doomed")
	}
}
