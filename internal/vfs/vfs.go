package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// FS is a file system, named by absolute paths. It is safe for concurrent use.
type FS interface {
	Directories
	// OpenFile opens or creates a file; flag and perm are those of os.OpenFile.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(oldName, newName string) error
	Remove(name string) error
	// Stat does not follow a symbolic link at the end of name.
	Stat(name string) (fs.FileInfo, error)
	// Statfs returns the room on the file system that holds name.
	Statfs(name string) (Room, error)
}

// Directories is what is done with directories alone.
type Directories interface {
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir lists a directory in no particular order.
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Spread has directories that will be made in the directory name lie far from
	// each other on the disk, where the file system can be told so; else it is
	// errors.ErrUnsupported.
	Spread(name string) error
}

// File is an open file. It is safe for concurrent use, Close apart.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Allocator
	Locker
	Syncer
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// Allocator changes which bytes of a file take room on the disk.
type Allocator interface {
	// Fallocate gives [off, off+n) room on the disk, without a change of the
	// file's size.
	Fallocate(off, n int64) error
	// PunchHole gives the room of [off, off+n) back; the bytes read as zeros.
	PunchHole(off, n int64) error
}

// Syncer makes durable what was written.
type Syncer interface {
	// Sync is for this file.
	Sync() error
	// SyncFS is for the whole file system that holds this file.
	SyncFS() error
}

// Locker asks the kernel who else has the file.
type Locker interface {
	// Lock takes the advisory lock of the whole file for this open file
	// description, without waiting; ErrLocked if another one has it. Close
	// ends it.
	Lock() error
	// Lease takes a write lease (fcntl F_SETLEASE, F_WRLCK). That it is
	// granted proves that no other open file description and no mapping made
	// through one exists; ErrShared if one does, errors.ErrUnsupported if the
	// file system cannot tell. Unlease or Close ends it.
	Lease() error
	Unlease() error
}

// The answers of Lock and Lease when somebody else has the file.
var (
	ErrLocked = errors.New("file is locked by another process")
	ErrShared = errors.New("file is open elsewhere")
)

// Room is what a file system has and what of it is free.
type Room struct {
	BlockSize   int64 // unit of allocation, in bytes
	Total       int64 // bytes
	Free        int64 // bytes that may still be written by us
	TotalInodes int64 // 0 where the file system does not count them
	FreeInodes  int64
}

// Allocated returns the bytes that a file takes on the disk: its blocks where
// the file system says so, else its size.
func Allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// OSFile returns the operating system's file behind f, for sendfile and
// descriptor passing; ok is false if there is none, or if f is wrapped.
func OSFile(f File) (file *os.File, ok bool) {
	o, ok := f.(*osFile)
	if !ok {
		return nil, false
	}
	return o.File, true
}

// ReadFile reads a whole file of at most limit bytes; a longer one is cut.
func ReadFile(fsys FS, name string, limit int64) (_ []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.NewSectionReader(f, 0, limit))
}

// WriteFileAtomic replaces a file by data, durably: after a crash either the
// old or the new content is there. tmp is a name in the same directory.
func WriteFileAtomic(fsys FS, dir, tmp, name string, data []byte) error {
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}
