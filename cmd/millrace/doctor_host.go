package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"millrace/fuse"
)

// checkFuse looks whether this user can mount. A host that only runs masters
// or workers need not.
func (d *doctor) checkFuse() {
	const check = "/dev/fuse"
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.warn(check, "there is none: this host cannot mount", "load the module fuse; run a container with --device /dev/fuse")
		return
	case err != nil:
		d.warn(check, err.Error(), "run a container with --device /dev/fuse and --cap-add SYS_ADMIN; else give this user access to it")
		return
	}
	if err := f.Close(); err != nil {
		d.warn(check, err.Error(), "")
		return
	}
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			d.warn(check, "it opens, but this user is not root and there is no fusermount3", "install fuse3, or mount as root")
			return
		}
	}
	d.ok(check, "it opens")
}

// The first kernel with passthrough of FUSE files.
const passthroughMajor, passthroughMinor = 6, 9

// checkPassthrough looks whether a mount of this user could hand files to the
// kernel; the cache's part is told with the cache directories.
func (d *doctor) checkPassthrough() {
	const check = "passthrough"
	if d.settings.FUSE.Passthrough == fuse.PassthroughOff {
		d.warn(check, "fuse.passthrough is off: all reads are copied", "set it to auto, unless there is a reason")
		return
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		d.warn(check, err.Error(), "")
		return
	}
	release := unix.ByteSliceToString(u.Release[:])
	if major, minor, ok := kernelVersion(release); ok &&
		(major < passthroughMajor || major == passthroughMajor && minor < passthroughMinor) {
		d.warn(check, fmt.Sprintf("Linux %s has none: all reads are copied", release),
			fmt.Sprintf("run Linux %d.%d or newer for reads at the speed of local files", passthroughMajor, passthroughMinor))
		return
	}
	switch admin, initial, err := sysAdmin(); {
	case err != nil:
		d.warn(check, err.Error(), "")
	case !admin:
		d.warn(check, "this user lacks CAP_SYS_ADMIN: mounts of it copy all reads",
			"mount as root, or give the process CAP_SYS_ADMIN (AmbientCapabilities= of a service, --cap-add SYS_ADMIN of a container)")
	case !initial:
		d.warn(check, "this is a user namespace of its own: mounts in it copy all reads", "mount in the host's user namespace")
	default:
		d.ok(check, "Linux %s, and this user has CAP_SYS_ADMIN", release)
	}
}

// kernelVersion reads the first two numbers of a release such as 6.9.3-amd64.
func kernelVersion(release string) (major, minor int, ok bool) {
	n, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2 && err == nil
}

// sysAdmin reports whether this process has CAP_SYS_ADMIN, and whether that is
// in the initial user namespace.
func sysAdmin() (admin, initial bool, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, false, err
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				return false, false, fmt.Errorf("read the capabilities of this process: %w", err)
			}
			admin = caps&(1<<unix.CAP_SYS_ADMIN) != 0
		}
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	return admin, strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295", err
}

// checkOpenFiles looks at the limit that this user's processes have; a service
// may have another.
func (d *doctor) checkOpenFiles() {
	const check = "open files"
	limit, err := openFilesLimit()
	if err != nil {
		d.problem(check, err.Error(), "")
		return
	}
	caches := d.settings.Worker.Tiers
	wanted := uint64(0)
	for _, c := range caches {
		wanted += uint64(c.OpenFiles)
	}
	detail := fmt.Sprintf("this user's processes may open %d", limit)
	switch {
	case limit < leastFiles:
		d.problem(check, fmt.Sprintf("%s, at least %d are needed", detail, leastFiles), moreFiles)
	case limit/2/max(uint64(len(caches)), 1) < fewFiles:
		d.warn(check, detail+": many hits of a worker must open their files first", moreFiles)
	case limit/2 < wanted:
		d.warn(check, fmt.Sprintf("%s: a worker keeps half as many open, and not the %d that are configured", detail, wanted), moreFiles)
	default:
		d.ok(check, "%s", detail)
	}
}
