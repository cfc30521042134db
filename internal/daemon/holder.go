package daemon

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is one that holds something we want.
type process struct {
	pid     int
	command string
}

func (p process) String() string {
	if p.command == "" {
		return fmt.Sprintf("process %d", p.pid)
	}
	return fmt.Sprintf("process %d (%s)", p.pid, p.command)
}

func processOf(pid int) process {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return process{pid: pid}
	}
	return process{pid: pid, command: strings.TrimSpace(string(b))}
}

// holder finds the process that listens on addr. It sees other users'
// processes only as root.
func holder(network, addr string) (process, bool) {
	var inodes map[string]bool
	if network == "unix" {
		inodes = unixInodes(addr)
	} else {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return process{}, false
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return process{}, false
		}
		inodes = tcpInodes(uint16(n))
	}
	if len(inodes) == 0 {
		return process{}, false
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return process{}, false
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !inodes[to] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err == nil {
			return processOf(pid), true
		}
	}
	return process{}, false
}

// tcpInodes returns the link texts ("socket:[123]") of the sockets that
// listen on port at any local address.
func tcpInodes(port uint16) map[string]bool {
	const (
		stateListen = "0A"
		fieldLocal  = 1
		fieldState  = 3
		fieldInode  = 9
	)
	suffix := fmt.Sprintf(":%04X", port)
	inodes := map[string]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		eachLine(name, func(f []string) {
			if len(f) > fieldInode && f[fieldState] == stateListen && strings.HasSuffix(f[fieldLocal], suffix) {
				inodes["socket:["+f[fieldInode]+"]"] = true
			}
		})
	}
	return inodes
}

func unixInodes(path string) map[string]bool {
	const fieldInode, fieldPath = 6, 7
	inodes := map[string]bool{}
	eachLine("/proc/net/unix", func(f []string) {
		if len(f) > fieldPath && f[fieldPath] == path {
			inodes["socket:["+f[fieldInode]+"]"] = true
		}
	})
	return inodes
}

// eachLine calls do with the fields of each line of a file of /proc. A file
// that cannot be read has none: all this only improves a message.
func eachLine(name string, do func(fields []string)) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		do(strings.Fields(s.Text()))
	}
}
