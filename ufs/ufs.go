package ufs

import (
	"context"
	"io"
	"iter"
	"time"

	"millrace/block"
)

// Type tells files from directories.
type Type uint8

// The types of an under-store entry.
const (
	File Type = iota + 1
	Dir
)

// Info describes one file or directory of an under-store.
type Info struct {
	// Path is below the store's root, without leading or trailing slash; the
	// root is "". Components are separated by "/" and may hold any other byte.
	Path  string
	Type  Type
	Size  int64     // bytes; 0 for directories
	MTime time.Time // zero if the store knows none (S3 prefixes)
	// Tag is the version tag of a file: equal tags mean equal bytes.
	Tag string
	// Unsettled says that the file may still change under the same tag, so
	// that its bytes must not be kept.
	Unsettled bool
}

// Object names one version of a file.
type Object struct {
	Path   string
	Tag    string
	Length int64
}

// ListOptions say what List yields.
type ListOptions struct {
	// Recursive yields every file below dir, and no directories, in byte
	// order of the path; else the children of dir, each once, in an order
	// that is the same at each call while nothing changes.
	Recursive bool
	// After skips every path up to and including this one, in the order of a
	// recursive list; it resumes a list that was cut. Recursive only.
	After string
}

// Store is one under-store. All methods are safe for concurrent use.
type Store interface {
	// Stat describes path. It is errs.NotFound when there is neither a file
	// nor a directory.
	Stat(ctx context.Context, path string) (Info, error)
	// List streams what is in dir in constant memory. It ends after the
	// first error. A directory that does not exist is errs.NotFound, a file
	// is errs.NotDir. The root of an empty store is an empty directory.
	List(ctx context.Context, dir string, opts ListOptions) iter.Seq2[Info, error]
	// Read opens the bytes e of one version of a file. e lies within
	// [0, obj.Length) and is not empty. Reading yields exactly e.Length
	// bytes and then io.EOF, or an error: errs.Stale when the file no longer
	// has that version, errs.NotFound when it is gone. ctx covers the whole
	// life of the reader, which the caller closes.
	Read(ctx context.Context, obj Object, e block.Extent) (io.ReadCloser, error)
	// Close frees what the store holds. No other call may be under way.
	Close() error
}

// Observer is told what a store asks of its server: each attempt, retries
// included. Its methods must be fast and safe for concurrent use.
type Observer interface {
	// Request counts one attempt; op is "get", "head" or "list".
	Request(op string)
	// FileBytes counts bytes of files received.
	FileBytes(n int64)
	// ListBytes counts bytes of listing answers received.
	ListBytes(n int64)
}
