package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"millrace/client"
	"millrace/internal/errs"
)

// maxRequest bounds one read of the kernel, in bytes. Linux has twice as much
// at most, but that does not fit into a pipe with its header, and is copied for
// half as much CPU time again than two halves are spliced for; reads through
// the client cost the same either way.
const maxRequest = 512 << 10

// Mount is one mount of a path of the namespace on a directory of this host.
type Mount struct {
	cfg    Config
	point  string
	root   string
	look   look
	client Client
	log    *slog.Logger
	reg    prometheus.Registerer

	device    string // of the kernel's FUSE
	spliced   span
	backer    func(*gofuse.Server) backer
	ready     chan struct{}
	readyOnce sync.Once
}

// New prepares a mount of the namespace path root at mountPoint; nothing
// happens before Run. log is required, reg may be nil.
func New(cfg Config, mountPoint, root string, c Client, log *slog.Logger, reg prometheus.Registerer) (*Mount, error) {
	if err := cfg.Validate(); err != nil {
		return nil, errs.E(errs.Invalid, "mount", mountPoint, err)
	}
	if root == "" || root[0] != '/' || path.Clean(root) != root {
		return nil, errs.E(errs.Invalid, "mount", mountPoint, fmt.Errorf("namespace path %q is not absolute and clean", root))
	}
	l, err := cfg.look(time.Now().Truncate(time.Second))
	if err != nil {
		return nil, errs.E(errs.Invalid, "mount", mountPoint, err)
	}
	return &Mount{
		cfg: cfg, point: mountPoint, root: root, look: l, client: c,
		log: log, reg: reg, device: "/dev/fuse", spliced: spliceWorth, backer: backerOf, ready: make(chan struct{}),
	}, nil
}

// Ready is closed when the mount answers.
func (m *Mount) Ready() <-chan struct{} { return m.ready }

// Check clears a dead mount point and says whether Run could mount on this
// host and here, so that a program which does much before it mounts can fail
// before it does.
func (m *Mount) Check(ctx context.Context) error {
	_, err := m.prepare(ctx)
	if err == nil {
		err = checkDevice(m.device)
	}
	return errs.Wrap(err, "mount", m.point)
}

// Run clears a dead mount point, mounts, and serves until ctx ends or
// somebody unmounts, which is no error. When ctx ends, programs that hold
// files open get Config.UnmountTimeout to close them; then they are cut off.
// No mount is left when Run returns.
func (m *Mount) Run(ctx context.Context) error {
	if err := m.run(ctx); err != nil {
		return errs.Wrap(err, "mount", m.point)
	}
	return nil
}

func (m *Mount) run(ctx context.Context) error {
	point, err := m.prepare(ctx)
	if err != nil {
		return err
	}
	root, err := m.client.Stat(ctx, m.root, client.StatOptions{})
	switch {
	case err != nil:
		return err
	case !root.Dir:
		return errs.E(errs.NotDir, "stat", m.root, nil)
	}

	// Requests live as long as the mount, which is a little longer than ctx.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	req := newRequests(serving)
	counts := newMetrics()
	fs := newFsys(&m.cfg, m.look, root, m.client, req, counts, m.log)
	fs.spliced, fs.backer = m.spliced, m.backer
	counts.watch(fs)
	unregister, err := counts.register(m.reg)
	if err != nil {
		return err
	}
	defer unregister()

	defer makeReadersRoom()()
	server, err := m.mount(ctx, fs, point)
	if err != nil {
		return err
	}
	req.workers.Go(req.run)
	req.workers.Go(func() { fs.pass.run(serving) })
	if fs.unopened != nil {
		req.workers.Go(func() { fs.runUnopened(serving) })
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "wait for the mount", slog.Any("error", err))
	}
	entry := m.mounted(point)
	m.tune(ctx, entry)
	m.readyOnce.Do(func() { close(m.ready) })
	m.log.LogAttrs(ctx, slog.LevelInfo, "mounted", slog.String("path", m.root), slog.String("mount_point", point))

	select {
	case <-served:
	case <-ctx.Done():
		if err := m.unmount(context.WithoutCancel(ctx), point, entry, stop, served); err != nil {
			return err
		}
	}
	stop()
	<-served
	fs.end()
	req.workers.Wait()
	m.log.LogAttrs(ctx, slog.LevelInfo, "unmounted", slog.String("mount_point", point))
	return nil
}

// prepare makes sure that the mount point can be mounted on, and returns its
// absolute path without symbolic links.
func (m *Mount) prepare(ctx context.Context) (string, error) {
	point, err := canonical(m.point)
	if err != nil {
		return "", err
	}
	cleared, err := clearDead(ctx, point)
	if err != nil {
		return "", err
	}
	if cleared > 0 {
		m.log.LogAttrs(ctx, slog.LevelWarn, "cleared the dead mount of an earlier run", slog.String("mount_point", point))
	}
	info, err := os.Lstat(point)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", errs.E(errs.NotFound, "", "", errors.New("the mount point does not exist")).WithHint("mkdir " + point)
	case errors.Is(err, unix.ENOTCONN):
		return "", errs.E(errs.Busy, "", "", errors.New("a dead mount of another file system is here")).WithHint("umount -l " + point)
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", errs.E(errs.NotDir, "", "", errors.New("the mount point is not a directory")).WithHint("choose an empty directory")
	case m.cfg.NonEmpty:
		return point, nil
	}
	names, err := os.ReadDir(point)
	switch {
	case err != nil:
		return "", err
	case len(names) > 0:
		return "", errs.E(errs.NotEmpty, "", "", fmt.Errorf("the mount point holds %s, which the mount would hide", names[0].Name())).
			WithHint("choose an empty directory, or -o nonempty (--mount-opt nonempty of millrace up)")
	}
	return point, nil
}

func (m *Mount) mount(ctx context.Context, fs *fsys, point string) (*gofuse.Server, error) {
	if err := checkDevice(m.device); err != nil {
		return nil, err
	}
	root := os.Geteuid() == 0
	options := &gofuse.MountOptions{
		AllowOther:               m.cfg.AllowOther,
		Options:                  []string{"default_permissions"},
		Name:                     fsSubtype,
		FsName:                   sourceOf(m.cfg.Masters, m.root),
		MaxBackground:            m.cfg.MaxBackground,
		MaxWrite:                 maxRequest,
		MaxReadAhead:             int(m.cfg.ReadAhead),
		IgnoreSecurityLabels:     true,
		ExplicitDataCacheControl: true, // the pages of a node never change
		DirectMountStrict:        root,
		DirectMountFlags:         unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY,
		Logger:                   slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	}
	if !root {
		options.Options = append(options.Options, "ro")
		if !haveFusermount() {
			return nil, errs.E(errs.Permission, "", "", errors.New("mounting needs root or fusermount3")).
				WithHint("run as root, or install the package fuse3")
		}
	}
	server, err := gofuse.NewServer(fs, point, options)
	if err == nil {
		return server, nil
	}
	if e := m.mounted(point); e.ours() { // it failed behind the mount itself
		err = errors.Join(err, detach(context.WithoutCancel(ctx), point))
	}
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return nil, errs.E(errs.Permission, "", "", err).
			WithHint("mounting needs CAP_SYS_ADMIN; in a container: --cap-add SYS_ADMIN --device /dev/fuse")
	default:
		return nil, err
	}
}

// checkDevice says what to do when this host offers no FUSE.
func checkDevice(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return deviceRefused(device, err)
	}
	return f.Close()
}

func deviceRefused(device string, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err // the path is named already
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return errs.E(errs.Unsupported, "open", device, err).
			WithHint("load the kernel module (modprobe fuse); in a container: --device /dev/fuse --cap-add SYS_ADMIN")
	case errors.Is(err, os.ErrPermission):
		return errs.E(errs.Permission, "open", device, err).
			WithHint("run as root, or allow the device to this user; in a container: --device /dev/fuse --cap-add SYS_ADMIN")
	default:
		return errs.Wrap(err, "open", device)
	}
}

func haveFusermount() bool {
	for _, name := range []string{"fusermount3", "fusermount"} {
		if _, err := exec.LookPath(name); err == nil {
			return true
		}
	}
	return false
}

// mounted returns the mount's line of the mount table, zero if it is gone.
func (m *Mount) mounted(point string) mountEntry {
	all, err := mounts()
	if err != nil {
		return mountEntry{}
	}
	e, _ := topmost(all, point)
	return e
}

// tune raises the kernel's read-ahead, which it bounds to 128 KiB for FUSE
// however much the mount asks for, unless root says otherwise afterwards.
func (m *Mount) tune(ctx context.Context, e mountEntry) {
	if !e.ours() {
		return
	}
	name := filepath.Join("/sys/class/bdi", fmt.Sprintf("%d:%d", e.major, e.minor), "read_ahead_kb")
	kb := strconv.FormatInt(int64(m.cfg.ReadAhead)>>10, 10)
	if err := os.WriteFile(name, []byte(kb), 0o600); err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "read-ahead stays at the kernel's default", slog.Any("error", err))
	}
}

// unmount ends the mount whatever holds it, and the connection with it. An
// error says that the connection goes on, since this process has not the
// right to abort it: its end is then that of the process.
func (m *Mount) unmount(ctx context.Context, point string, e mountEntry, stop context.CancelFunc, served <-chan struct{}) error {
	patient, cancel := context.WithTimeout(ctx, m.cfg.UnmountTimeout.Std())
	defer cancel()
	err := unmountWhenIdle(patient, point)
	gone := err == nil || errors.Is(err, unix.EINVAL) // EINVAL: somebody else was faster
	if gone {
		// A copy of the mount in another mount namespace, such as that of a
		// container that was started meanwhile, keeps the connection.
		if err = m.await(ctx, served); err == nil {
			return nil
		}
	}
	m.log.LogAttrs(ctx, slog.LevelWarn, "programs still use the mount; they are cut off",
		slog.String("mount_point", point), slog.Any("error", err))
	stop()
	if err := abort(e); err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "abort the connection", slog.Any("error", err))
	}
	// MNT_FORCE aborts the connection, MNT_DETACH takes it out of sight.
	if !gone && unix.Unmount(point, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) != nil {
		if err := detach(ctx, point); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return m.await(ctx, served)
}

// await waits for the end of a connection whose mount is gone.
func (m *Mount) await(ctx context.Context, served <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.UnmountTimeout.Std()+time.Second)
	defer cancel()
	select {
	case <-served:
		return nil
	case <-ctx.Done():
		return errs.E(errs.Busy, "", "", errors.New("unmounted, but programs keep files open, or another mount namespace has a copy of the mount; they are cut off when this process ends"))
	}
}
