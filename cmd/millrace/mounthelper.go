package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// mountHelper is the name under which mount(8) calls this program for a line
// of fstab, or for `mount -t millrace`.
const mountHelper = "mount.millrace"

// defaultMasterPort is that of a master whose address names none.
const defaultMasterPort = "7760"

// systemDataDir is for mounts that the system makes as it boots, when nobody
// has a home.
const systemDataDir = "/var/lib/millrace/mount"

// runAs is run for a whole command line, the program's own name first: what
// mount(8) says to its helper becomes a mount in the background.
func runAs(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	args, err := commandLine(argv, os.Getenv("HOME"))
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "%s: %v\n", mountHelper, err)
		return exitUsage
	}
	return run(ctx, args, stdin, stdout, stderr)
}

// commandLine returns the arguments of a command line, without the name.
func commandLine(argv []string, home string) ([]string, error) {
	if len(argv) == 0 || filepath.Base(argv[0]) != mountHelper {
		return argv[min(1, len(argv)):], nil
	}
	return helperArgs(argv[1:], home)
}

const helperUsage = "want SOURCE MOUNTPOINT [-o OPTIONS], where SOURCE is [MASTER[,...]]:/PATH"

// helperCall is what mount(8) said to its helper.
type helperCall struct {
	places, options []string
	sloppy, fake    bool
}

// parseHelperCall reads the arguments of mount(8)'s helpers, which are
// described in mount(8) under "EXTERNAL HELPERS".
func parseHelperCall(args []string) (c helperCall, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "-o" || arg == "-t" || arg == "-N":
			if len(args) == 0 {
				return c, fmt.Errorf("%s needs a value; %s", arg, helperUsage)
			}
			value := args[0]
			args = args[1:]
			switch arg {
			case "-o":
				c.options = append(c.options, strings.Split(value, ",")...)
			case "-N":
				return c, fmt.Errorf("-N %s: other mount namespaces are not supported", value)
			}
		case strings.HasPrefix(arg, "-") && len(arg) > 1 && strings.Trim(arg[1:], "sfnv") == "":
			c.sloppy = c.sloppy || strings.Contains(arg, "s")
			c.fake = c.fake || strings.Contains(arg, "f")
		case strings.HasPrefix(arg, "-"):
			return c, fmt.Errorf("unknown flag %s; %s", arg, helperUsage)
		default:
			c.places = append(c.places, arg)
		}
	}
	if len(c.places) != 2 {
		return c, fmt.Errorf("%d arguments; %s", len(c.places), helperUsage)
	}
	return c, nil
}

// helperArgs translates the arguments of mount(8)'s helper to ours.
func helperArgs(args []string, home string) ([]string, error) {
	c, err := parseHelperCall(args)
	if err != nil {
		return nil, err
	}
	masters, root, err := parseMountSource(c.places[0])
	if err != nil {
		return nil, err
	}
	if c.fake { // mount -f: everything but the mount
		return []string{"version"}, nil
	}
	out := []string{"mount", "--background", "--path", root}
	if masters != "" {
		out = append(out, "--masters", masters)
	}
	return append(out, c.flags(home)...), nil
}

// flags translates the options and the mount point.
func (c *helperCall) flags(home string) []string {
	http, dataDir := "127.0.0.1:0", "" // any port: a host has many mounts
	if home == "" {
		dataDir = systemDataDir
	}
	var out, passed []string
	for _, o := range c.options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "config", "log_level":
			out = append(out, "--"+strings.ReplaceAll(name, "_", "-"), value)
		case "data_dir":
			dataDir = value
		case "http_listen":
			http = value
		case "allow_other", "uid", "gid", "umask", "passthrough", "no_open", "read_ahead", "nonempty", "default_permissions", "ro":
			passed = append(passed, o)
		default:
			if !ignoredOption(name) && !c.sloppy {
				passed = append(passed, o) // and refused by name
			}
		}
	}
	if dataDir != "" {
		out = append(out, "--data-dir", dataDir)
	}
	out = append(out, "--http-listen", http)
	if len(passed) > 0 {
		out = append(out, "-o", strings.Join(passed, ","))
	}
	return append(out, "--", c.places[1])
}

// ignoredOption reports whether an option of mount(8) changes nothing here:
// because it is always so, or because it is for mount(8) alone. mount(8) says
// rw when nobody said anything.
func ignoredOption(name string) bool {
	switch name {
	case "", "rw", "defaults", "nosuid", "nodev", "suid", "dev", "exec", "async", "auto", "noauto", "nofail", "_netdev",
		"user", "nouser", "users", "owner", "group", "comment",
		"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime":
		return true
	}
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

// parseMountSource takes [MASTER[,...]]:/PATH apart. A master without a port
// has the default one; no master leaves them to the configuration.
func parseMountSource(source string) (masters, root string, err error) {
	before, after, ok := strings.Cut(source, ":/")
	if !ok || strings.HasPrefix(after, "/") {
		return "", "", fmt.Errorf("source %q: want [MASTER[,...]]:/PATH, as in :/ or 10.0.0.1:7760,10.0.0.2:7760:/images", source)
	}
	if before == "" {
		return "", cleanPath("/" + after), nil
	}
	list := strings.Split(before, ",")
	for i, m := range list {
		if m == "" {
			return "", "", fmt.Errorf("source %q: an empty master", source)
		}
		if _, _, err := net.SplitHostPort(m); err != nil {
			list[i] = net.JoinHostPort(strings.Trim(m, "[]"), defaultMasterPort)
		}
		if _, _, err := net.SplitHostPort(list[i]); err != nil {
			return "", "", fmt.Errorf("source %q: %q is not HOST or HOST:PORT", source, m)
		}
	}
	return strings.Join(list, ","), cleanPath("/" + after), nil
}
