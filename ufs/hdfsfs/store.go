package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/colinmarc/hdfs/v2"

	"millrace/internal/errs"
	"millrace/ufs"
	"millrace/ufs/ufslimit"
)

// settleTime is how old a modification time must be before the tag stands for
// the bytes.
const settleTime = 2 * time.Second

// The operations that observers are told.
const (
	opGet  = "get"
	opHead = "head"
	opList = "list"
)

// Store is a directory of HDFS. It is safe for concurrent use.
type Store struct {
	prefix    string // of URIs in messages: scheme and authority
	dir       string // "" for the root
	nameNode  *nameNode
	replicas  *replicas
	locations *locations
	limiter   *ufslimit.Limiter
	observer  ufs.Observer
	dial      dialer    // to DataNodes
	windows   sync.Pool // of *[maxWindow]byte
	chunk     int       // entries of a directory in memory
	now       func() time.Time
}

var _ ufs.Opener = Open

// Open makes the store of cfg.URI, hdfs://NAMENODE[:PORT]/DIR, where NAMENODE
// may be a nameservice of Hadoop's configuration. It asks nothing of the
// network. Options that are wrong are errs.Invalid and named.
func Open(_ context.Context, cfg ufs.Config) (ufs.Store, error) {
	return open(cfg)
}

func open(cfg ufs.Config) (*Store, error) {
	set, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	limits, err := ufs.ParseLimits(cfg.Options)
	if err != nil {
		return nil, errs.Wrap(err, "open under-store", cfg.URI)
	}
	s := &Store{
		prefix: scheme + set.authority, dir: strings.TrimSuffix(set.dir, "/"),
		replicas: newReplicas(), locations: newLocations(),
		limiter: ufslimit.New(limits), observer: cfg.Observer,
		dial:  (&net.Dialer{Timeout: set.dataNodeTimeout}).DialContext,
		chunk: 1 << 16, now: time.Now,
	}
	s.windows.New = func() any { return new([maxWindow]byte) }
	if s.observer == nil {
		s.observer = nobody{}
	}
	s.nameNode = newNameNode(set, s.limiter, s.observer)
	return s, nil
}

// Close closes the connections to NameNodes.
func (s *Store) Close() error {
	s.nameNode.close()
	return nil
}

// Stat describes path.
func (s *Store) Stat(ctx context.Context, path string) (ufs.Info, error) {
	const op = "stat"
	if err := s.check(ctx, op, path); err != nil {
		return ufs.Info{}, err
	}
	st, err := s.status(ctx, path, extras{located: true})
	if err != nil {
		return ufs.Info{}, s.fail(op, path, err)
	}
	info, err := s.info(path, st)
	if err != nil {
		return ufs.Info{}, s.fail(op, path, err)
	}
	return info, nil
}

// status asks the NameNode for what is at path.
func (s *Store) status(ctx context.Context, path string, more extras) (*hdfs.FileStatus, error) {
	var st *hdfs.FileStatus
	err := s.nameNode.call(ctx, opHead, more, func(c *hdfs.Client) error {
		fi, err := c.Stat(s.path(path))
		if err == nil {
			st, _ = fi.Sys().(*hdfs.FileStatus)
		}
		return err
	})
	return st, err
}

// info describes a file or directory. A symbolic link is errs.NotFound.
func (s *Store) info(path string, st *hdfs.FileStatus) (ufs.Info, error) {
	v := versionOf(st)
	switch st.GetFileType() {
	case isDir:
		return ufs.Info{Path: path, Type: ufs.Dir, MTime: v.modified()}, nil
	case isFile:
		if st.GetLocations() == nil {
			return ufs.Info{}, errNoLocations()
		}
		return ufs.Info{
			Path: path, Type: ufs.File, Size: v.length, MTime: v.modified(), Tag: v.tag(),
			Unsettled: st.GetLocations().GetUnderConstruction() || s.now().Sub(v.modified()).Abs() <= settleTime,
		}, nil
	default:
		return ufs.Info{}, errs.E(errs.NotFound, "", "", errors.New("neither a file nor a directory"))
	}
}

// The types of HdfsFileStatusProto.
const (
	isDir  = 1
	isFile = 2
)

// path returns the absolute path in HDFS.
func (s *Store) path(path string) string {
	if path == "" && s.dir == "" {
		return "/"
	}
	if path == "" {
		return s.dir
	}
	return s.dir + "/" + path
}

// uri returns the URI of path, for messages.
func (s *Store) uri(path string) string { return s.prefix + s.path(path) }

// check looks at what each call has to look at first.
func (s *Store) check(ctx context.Context, op, path string) error {
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, s.uri(path))
	}
	if !ufs.ValidPath(path) {
		return errs.E(errs.Invalid, op, s.uri(path), errors.New(`the path has an empty component, "." or ".."`))
	}
	if !utf8.ValidString(path) {
		return errs.E(errs.NotFound, op, s.uri(path), errors.New("names in HDFS are UTF-8"))
	}
	return nil
}

// validPath reports whether path may name something in HDFS.
func validPath(path string) bool { return ufs.ValidPath(path) && utf8.ValidString(path) }

// fail gives an error of HDFS its kind.
func (s *Store) fail(op, path string, err error) error {
	var remote hdfs.Error
	if pe, ok := errors.AsType[*fs.PathError](err); ok { // the URI says the path already
		err = pe.Err
	}
	if errors.As(err, &remote) {
		first, _, _ := strings.Cut(remote.Message(), "\n")
		return errs.E(kindOf(remote.Exception()), op, s.uri(path), fmt.Errorf("%s: %s", remote.Exception(), first))
	}
	kind := errs.KindOf(err)
	if kind == errs.Unknown {
		kind = errs.Unavailable
	}
	return errs.E(kind, op, s.uri(path), err)
}

// kindOf classifies what a NameNode throws, besides what the library does.
func kindOf(exception string) errs.Kind {
	switch exception {
	case "org.apache.hadoop.fs.ParentNotDirectoryException",
		"org.apache.hadoop.fs.InvalidPathException",
		"org.apache.hadoop.hdfs.protocol.UnresolvedPathException":
		return errs.NotFound
	case "org.apache.hadoop.ipc.RpcNoSuchMethodException": // before HDFS 3.1
		return errs.Unsupported
	default:
		return errs.Unavailable
	}
}

// nobody is the observer of a store without one.
type nobody struct{}

func (nobody) Request(string)  {}
func (nobody) FileBytes(int64) {}
func (nobody) ListBytes(int64) {}
