package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// listenPort returns the IPv4 TCP port that the process listens on, 0 while
// there is none. A server that is told port 0 does not print what it got, and
// to choose a free port for it would race with others; the kernel knows.
func listenPort(pid int) (int, error) {
	inodes, err := socketInodes(pid)
	if err != nil {
		return 0, err
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return 0, err
	}
	return findListener(table, inodes)
}

// socketInodes returns the inode numbers of the process's sockets.
func socketInodes(pid int) (map[string]bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	inodes := make(map[string]bool)
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed since it was listed
		}
		if rest, ok := strings.CutPrefix(link, "socket:["); ok {
			inodes[strings.TrimSuffix(rest, "]")] = true
		}
	}
	return inodes, nil
}

// findListener returns the port of the socket in the LISTEN state of table,
// in the format of /proc/net/tcp, that is among inodes; 0 if there is none.
func findListener(table []byte, inodes map[string]bool) (int, error) {
	const (
		local, state, inode = 1, 3, 9
		listening           = "0A"
	)
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= inode || f[state] != listening || !inodes[f[inode]] {
			continue
		}
		_, hex, _ := strings.Cut(f[local], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			return 0, fmt.Errorf("local address %q: %w", f[local], err)
		}
		return int(port), nil
	}
	return 0, lines.Err()
}

// loopback returns the address of a port on loopback.
func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
