package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireEnv is the environment variable that lists the needs, separated by
// commas, that must not be missing: "s3", "hdfs", "fuse", "root", "tmpfs",
// "mounts", "namespaces", "strace", or "all".
const RequireEnv = "MILLRACE_REQUIRE"

// ServerEnv is the environment variable that names the S3 server's binary.
const ServerEnv = "MILLRACE_VERSITYGW"

// Need is something that a test cannot do without.
type Need string

// TmpfsDir is where tests make directories of their own on a tmpfs.
const TmpfsDir = "/dev/shm"

// tmpfsRoom is what must be free there, in bytes.
const tmpfsRoom = 256 << 20

// The needs that Require knows.
const (
	S3Server Need = "s3"    // the versitygw binary
	HadoopFS Need = "hdfs"  // Java, and Hadoop's jars or Maven to fetch them once
	Fuse     Need = "fuse"  // /dev/fuse, and the right to mount
	Root     Need = "root"  // effective user ID 0
	Tmpfs    Need = "tmpfs" // TmpfsDir is one, with room for tests

	Mounts     Need = "mounts"     // root, the right to mount, loop devices and mkfs.ext4
	Namespaces Need = "namespaces" // root, the right to make network namespaces, and ip, nsenter and unshare
	Strace     Need = "strace"     // strace, and the right to trace
)

// Require skips the test when one of the needs is missing, and says which; it
// fails the test instead when MILLRACE_REQUIRE names the need.
func Require(tb testing.TB, needs ...Need) {
	tb.Helper()
	for _, n := range needs {
		err := n.Missing()
		if err == nil {
			continue
		}
		if required(os.Getenv(RequireEnv), n) {
			tb.Fatalf("REQUIRED BUT MISSING: %s: %v", n, err)
		}
		tb.Skipf("SKIPPED, NOT TESTED: needs %s: %v (set %s=%s to make this a failure)", n, err, RequireEnv, n)
	}
}

// required reports whether list, the value of MILLRACE_REQUIRE, names n.
func required(list string, n Need) bool {
	names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	return slices.Contains(names, string(n)) || slices.Contains(names, "all")
}

// Missing says what is missing of it here, or nil.
func (n Need) Missing() error {
	switch n {
	case S3Server:
		_, err := serverBinary()
		return err
	case HadoopFS:
		return checkHDFS()
	case Fuse:
		return checkFuse()
	case Root:
		return checkRoot()
	case Tmpfs:
		return checkTmpfs()
	case Mounts:
		return runs("mkfs.ext4 -V && test -e /dev/loop-control && unshare --mount mount -t tmpfs tmpfs /mnt")
	case Namespaces:
		return runs("unshare --net --mount ip link add type bridge && command -v nsenter")
	case Strace:
		return runs("strace -f -e trace=pwrite64 -e inject=pwrite64:error=EIO true")
	default:
		return fmt.Errorf("the need %q is unknown", string(n))
	}
}

func checkRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("the effective user ID is %d", uid)
	}
	return nil
}

// runs finds out by trying, as root, what the kernel and its configuration
// allow.
func runs(script string) error {
	if err := checkRoot(); err != nil {
		return err
	}
	if out, err := exec.CommandContext(context.Background(), "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

func checkFuse() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return nil
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if _, err := exec.LookPath(name); err == nil {
			return nil
		}
	}
	return errors.New("neither root nor fusermount can mount")
}

func checkTmpfs() error {
	var st unix.Statfs_t
	if err := unix.Statfs(TmpfsDir, &st); err != nil {
		return fmt.Errorf("%s: %w", TmpfsDir, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is no tmpfs", TmpfsDir)
	}
	if free := st.Bavail * uint64(st.Bsize); free < tmpfsRoom {
		return fmt.Errorf("%s has %d MiB free, %d are needed", TmpfsDir, free>>20, tmpfsRoom>>20)
	}
	return unix.Access(TmpfsDir, unix.W_OK)
}

// serverBinary finds the S3 server: where MILLRACE_VERSITYGW says, else in
// .tools of the working directory or one above it, else in PATH.
func serverBinary() (string, error) {
	if path := os.Getenv(ServerEnv); path != "" {
		return exec.LookPath(path)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, ".tools", "versitygw")
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up
	}
	path, err := exec.LookPath("versitygw")
	if err != nil {
		return "", fmt.Errorf("versitygw is not in $%s, not in .tools of a folder above, not in PATH: `make tools` builds it", ServerEnv)
	}
	return path, nil
}
