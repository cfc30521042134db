package fuse

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"millrace/internal/size"
)

// Config is the section [fuse]: what a mount looks like.
type Config struct {
	// AllowOther lets users other than the one who mounts see the mount;
	// without root it needs user_allow_other in /etc/fuse.conf.
	AllowOther bool `toml:"allow_other"`
	// UID owns all files and directories; -1 is the user who mounts.
	UID int64 `toml:"uid"`
	// GID is the group of all files and directories; -1 is that of the
	// process that mounts.
	GID int64 `toml:"gid"`
	// Umask is cleared from the modes 0444 of files and 0555 of directories;
	// octal.
	Umask string `toml:"umask"`
	// NonEmpty allows to mount over a directory that holds files, which are
	// hidden by the mount.
	NonEmpty bool `toml:"nonempty"`
	// Passthrough is auto to hand files that are wholly cached on this host to
	// the kernel, which then reads them without this process, or off. It needs
	// Linux 6.9, CAP_SYS_ADMIN, and a cache directory that is on no stacked
	// file system such as overlayfs; without, reads are copied.
	Passthrough string `toml:"passthrough"`
	// NoOpen has the kernel open and close files without asking, so that a
	// small file costs a name and a read. It switches passthrough off, and who
	// has a file open when it is replaced gets ESTALE for what the kernel has
	// not read of it yet.
	NoOpen bool `toml:"no_open"`
	// ReadAhead is how far the kernel reads ahead of a sequential reader, and
	// around a page that a program touches in a mapped file: more makes the
	// former faster and the latter costlier. Without root the kernel's own
	// bound (128 KiB) holds.
	ReadAhead size.Bytes `toml:"read_ahead"`
	// MaxBackground bounds the read-ahead requests that the kernel has under
	// way at once, for all readers together: 1 to 65535.
	MaxBackground int `toml:"max_background"`
	// EntryCache bounds the memory for what the masters answered about names,
	// also that they do not exist: within the freshness of its answer, a name
	// that the kernel forgot is found without a master. A name takes about
	// 300 bytes. 1MiB to 64GiB.
	EntryCache size.Bytes `toml:"entry_cache"`
	// ListedNodes is how many names the kernel may hold for listings to give
	// it more; beyond, names are handed over when they are used. Each takes
	// about 250 bytes here and some 1500 in the kernel. 1024 or more.
	ListedNodes int `toml:"listed_nodes"`
	// UnmountTimeout is how long the end of a mount waits for programs that
	// hold files open; then they are cut off.
	UnmountTimeout size.Duration `toml:"unmount_timeout"`

	// Masters are the gRPC addresses of the masters. They are written into
	// the mount table, so that other programs on the host find the cluster
	// that a path belongs to.
	Masters []string `toml:"-"`
}

// What Config.Passthrough may be.
const (
	PassthroughAuto = "auto"
	PassthroughOff  = "off"
)

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		UID:            -1,
		GID:            -1,
		Umask:          "0022",
		Passthrough:    PassthroughAuto,
		ReadAhead:      size.MiB,
		MaxBackground:  64,
		EntryCache:     64 * size.MiB,
		ListedNodes:    1 << 20,
		UnmountTimeout: size.Duration(5 * time.Second),
	}
}

// Validate checks the ranges of all fields.
func (c *Config) Validate() error {
	var list []error
	bad := func(field string, v any, want string) {
		list = append(list, fmt.Errorf("fuse.%s: %v: want %s", field, v, want))
	}
	if c.UID < -1 || c.UID > maxID {
		bad("uid", c.UID, "a user number, or -1")
	}
	if c.GID < -1 || c.GID > maxID {
		bad("gid", c.GID, "a group number, or -1")
	}
	if _, err := parseUmask(c.Umask); err != nil {
		bad("umask", c.Umask, "an octal number up to 0777")
	}
	if c.Passthrough != PassthroughAuto && c.Passthrough != PassthroughOff {
		bad("passthrough", c.Passthrough, "auto or off")
	}
	if c.ReadAhead < 4*size.KiB || c.ReadAhead > size.GiB {
		bad("read_ahead", c.ReadAhead, "4KiB to 1GiB")
	}
	if c.MaxBackground < 1 || c.MaxBackground > 1<<16-1 {
		bad("max_background", c.MaxBackground, "1 to 65535")
	}
	if c.EntryCache < size.MiB || c.EntryCache > 64*size.GiB {
		bad("entry_cache", c.EntryCache, "1MiB to 64GiB")
	}
	if c.ListedNodes < 1024 {
		bad("listed_nodes", c.ListedNodes, "1024 or more")
	}
	if c.UnmountTimeout < 0 {
		bad("unmount_timeout", c.UnmountTimeout, "0s or more")
	}
	return errors.Join(list...)
}

const maxID = 1<<32 - 2 // 2^32-1 means "no such user" to the kernel

func parseUmask(s string) (uint32, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || v > 0o777 {
		return 0, fmt.Errorf("%q is not an octal number up to 0777", s)
	}
	return uint32(v), nil
}

// ParseOptions applies mount options, as they stand behind `mount -o`
// (separated by commas), to the configuration and returns the result. Options
// that this release does not know are errors that name them.
func ParseOptions(c Config, options string) (Config, error) {
	var list []error
	for option := range strings.SplitSeq(options, ",") {
		if option = strings.TrimSpace(option); option == "" {
			continue
		}
		if err := c.apply(option); err != nil {
			list = append(list, err)
		}
	}
	return c, errors.Join(list...)
}

func (c *Config) apply(option string) error {
	name, value, hasValue := strings.Cut(option, "=")
	switch name {
	case "allow_other", "nonempty", "no_open", "ro", "default_permissions":
		if hasValue {
			return fmt.Errorf("mount option %s takes no value", name)
		}
	case "uid", "gid", "umask", "passthrough", "read_ahead":
		if value == "" {
			return fmt.Errorf("mount option %s needs a value", name)
		}
	case "rw":
		return errors.New("mount option rw: the mount is read-only")
	default:
		return fmt.Errorf("mount option %s is not supported", name)
	}
	return c.set(name, value)
}

// set applies an option that has a value if it needs one.
func (c *Config) set(name, value string) error {
	switch name {
	case "allow_other":
		c.AllowOther = true
	case "nonempty":
		c.NonEmpty = true
	case "no_open":
		c.NoOpen = true
	case "uid", "gid":
		id, err := strconv.ParseInt(value, 10, 64)
		if err != nil || id < 0 || id > maxID {
			return fmt.Errorf("mount option %s=%s: want a number from 0 to %d", name, value, int64(maxID))
		}
		if name == "uid" {
			c.UID = id
		} else {
			c.GID = id
		}
	case "read_ahead":
		if err := c.ReadAhead.Set(value); err != nil {
			return fmt.Errorf("mount option read_ahead: %w", err)
		}
	case "passthrough":
		if value != PassthroughAuto && value != PassthroughOff {
			return fmt.Errorf("mount option passthrough=%s: want auto or off", value)
		}
		c.Passthrough = value
	case "umask":
		if _, err := parseUmask(value); err != nil {
			return fmt.Errorf("mount option umask: %w", err)
		}
		c.Umask = value
	}
	return nil
}

// look is what all nodes of a mount have in common.
type look struct {
	uid, gid          uint32
	fileMode, dirMode uint32 // with the type bits
	born              time.Time
}

func (c *Config) look(now time.Time) (look, error) {
	umask, err := parseUmask(c.Umask)
	if err != nil {
		return look{}, err
	}
	l := look{
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		fileMode: typeFile | 0o444&^umask, dirMode: typeDir | 0o555&^umask,
		born: now,
	}
	if c.UID >= 0 {
		l.uid = uint32(c.UID)
	}
	if c.GID >= 0 {
		l.gid = uint32(c.GID)
	}
	return l, nil
}
