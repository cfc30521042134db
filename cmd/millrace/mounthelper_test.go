package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandLine(t *testing.T) {
	for in, want := range map[string]string{
		"millrace mount -o ro /mnt":     "mount -o ro /mnt",
		"/usr/bin/millrace":             "",
		"/sbin/mount.millrace :/ /mnt":  "mount --background --path / --http-listen 127.0.0.1:0 -- /mnt",
		"mount.millrace :/ /mnt -o rw":  "mount --background --path / --http-listen 127.0.0.1:0 -- /mnt",
		"mount.millrace :/ /mnt -f":     "version",
		"mount.millrace :/ /mnt -nv":    "mount --background --path / --http-listen 127.0.0.1:0 -- /mnt",
		"mount.millrace h:/a/../b/ /m":  "mount --background --path /b --masters h:7760 --http-listen 127.0.0.1:0 -- /m",
		"mount.millrace [::1]:/ /m":     "mount --background --path / --masters [::1]:7760 --http-listen 127.0.0.1:0 -- /m",
		"mount.millrace a:1,b:2:/d /m":  "mount --background --path /d --masters a:1,b:2 --http-listen 127.0.0.1:0 -- /m",
		"mount.millrace :/ /m -s -o zz": "mount --background --path / --http-listen 127.0.0.1:0 -- /m",
		"mount.millrace :/ /m -o zz":    "mount --background --path / --http-listen 127.0.0.1:0 -o zz -- /m",
		"mount.millrace :/ /m -t millrace -o rw,nosuid,nodev,noatime,x-systemd.automount,ro,allow_other,uid=5,gid=6,umask=077": "mount --background --path / --http-listen 127.0.0.1:0 -o ro,allow_other,uid=5,gid=6,umask=077 -- /m",
		"mount.millrace :/ /m -o config=/etc/m.toml,data_dir=/d,http_listen=:9,log_level=debug":                                "mount --background --path / --config /etc/m.toml --log-level debug --data-dir /d --http-listen :9 -- /m",
	} {
		got, err := commandLine(strings.Fields(in), "/root")
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if d := cmp.Diff(strings.Fields(want), got); d != "" && len(want)+len(got) > 0 {
			t.Errorf("%s: %s", in, d)
		}
	}
	for in, want := range map[string]string{
		"mount.millrace":                     "0 arguments",
		"mount.millrace :/":                  "1 arguments",
		"mount.millrace :/ /a /b":            "3 arguments",
		"mount.millrace /dev/sda /m":         "want [MASTER[,...]]:/PATH",
		"mount.millrace millrace://h/ /m":    "want [MASTER[,...]]:/PATH",
		"mount.millrace h,,g:/ /m":           "an empty master",
		"mount.millrace a[b:/ /m":            "not HOST or HOST:PORT",
		"mount.millrace :/ /m -o":            "-o needs a value",
		"mount.millrace :/ /m -q":            "unknown flag -q",
		"mount.millrace :/ /m -N /proc/1/ns": "not supported",
	} {
		if args, err := commandLine(strings.Fields(in), "/root"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want an error with %q", in, args, err, want)
		}
	}
	// As the system boots, nobody has a home.
	args, err := commandLine([]string{mountHelper, ":/", "/m"}, "")
	if got := strings.Join(args, " "); err != nil || !strings.Contains(got, "--data-dir "+systemDataDir) {
		t.Errorf("without a home: %s, %v", got, err)
	}
}
