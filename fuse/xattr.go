package fuse

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"millrace/client"
	"millrace/internal/errs"
)

// The extended attributes of a mounted file; a directory has the path alone.
const (
	XattrPath        = "user.millrace.path"         // in the namespace
	XattrFileID      = "user.millrace.file_id"      // 32 hexadecimal digits
	XattrVersion     = "user.millrace.version"      // the version tag
	XattrCachedBytes = "user.millrace.cached_bytes" // decimal, over all workers
	XattrWorkers     = "user.millrace.workers"      // IDs of those that have cached bytes, by commas
)

func (f *fsys) GetXAttr(cancel <-chan struct{}, header *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	n := f.table.get(header.NodeId)
	if n == nil {
		return 0, gofuse.Status(syscall.ESTALE)
	}
	if !strings.HasPrefix(name, "user.millrace.") {
		return 0, gofuse.ENODATA
	}
	ctx := f.req.context(cancel, header.Pid)
	defer ctx.end()
	value, ok, err := f.xattr(ctx, n, name)
	switch {
	case err != nil:
		return 0, f.faults.status("getxattr", n.path, err)
	case !ok:
		return 0, gofuse.ENODATA
	}
	return copyOut(dest, value)
}

// xattr returns the value of an attribute; ok is false if there is none.
func (f *fsys) xattr(ctx context.Context, n *node, name string) (value string, ok bool, err error) {
	if name == XattrPath {
		return n.path, true, nil
	}
	if n.dir {
		return "", false, nil
	}
	switch name {
	case XattrFileID:
		return n.fileID.String(), true, nil
	case XattrVersion:
		if a, ok := f.entries.get(n.path); ok && a.entry != nil && n.is(a.entry) {
			return a.entry.Tag, true, nil
		}
		e, err := f.restat(ctx, n, client.StatOptions{WithTicket: true})
		if err != nil {
			return "", false, err
		}
		return e.Tag, true, nil
	case XattrCachedBytes:
		e, err := f.restat(ctx, n, client.StatOptions{WithCached: true})
		if err != nil {
			return "", false, err
		}
		return strconv.FormatInt(e.CachedBytes, 10), true, nil
	case XattrWorkers:
		e, blocks, err := f.client.Locate(ctx, n.path)
		if err != nil {
			return "", false, err
		}
		if e.FileID != n.fileID {
			f.entries.drop(n.path)
			return "", false, errs.E(errs.Stale, "locate", n.path, nil)
		}
		return workersOf(blocks), true, nil
	default:
		return "", false, nil
	}
}

// restat asks the masters about a node; another version is errs.Stale.
func (f *fsys) restat(ctx context.Context, n *node, o client.StatOptions) (*client.Entry, error) {
	asked := time.Now()
	e, err := f.stat(ctx, n.path, asked, o)
	if err != nil {
		return nil, err
	}
	if !f.table.stillIs(n, e, asked) {
		return nil, errs.E(errs.Stale, "stat", n.path, nil)
	}
	return e, nil
}

func workersOf(blocks []client.BlockLocation) string {
	var ids []string
	for _, b := range blocks {
		ids = append(ids, b.Workers...)
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), ",")
}

func (f *fsys) ListXAttr(_ <-chan struct{}, header *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	n := f.table.get(header.NodeId)
	if n == nil {
		return 0, gofuse.Status(syscall.ESTALE)
	}
	names := []string{XattrPath}
	if !n.dir {
		names = append(names, XattrFileID, XattrVersion, XattrCachedBytes, XattrWorkers)
	}
	return copyOut(dest, strings.Join(names, "\x00")+"\x00")
}

// copyOut follows the protocol of getxattr(2): a buffer that is too small
// learns the size.
func copyOut(dest []byte, value string) (uint32, gofuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}
