package fuse

import (
	"runtime"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// deviceReaders is how many goroutines wait for the kernel's requests; go-fuse
// has no more than 16. Each has a buffer of maxRequest, of which it touches
// what requests are long, and a thread.
const deviceReaders = 8

// settingProcs is held by who changes GOMAXPROCS for a moment.
var settingProcs sync.Mutex //nolint:gochecknoglobals // what it guards is the process's

// newServer makes the server, and mounts.
//
// go-fuse keeps as many readers of the device as there are processors. When
// more requests than that are under way, as with a handful of programs that
// open files, it starts a reader for nearly each request and ends it behind
// its answer; with every one a stack grows from nothing, for a fifth of what a
// small file costs. go-fuse asks for the number but once, here.
func newServer(fs gofuse.RawFileSystem, point string, options *gofuse.MountOptions) (*gofuse.Server, error) {
	settingProcs.Lock()
	defer settingProcs.Unlock()
	if procs := runtime.GOMAXPROCS(0); procs < deviceReaders {
		runtime.GOMAXPROCS(deviceReaders)
		defer runtime.GOMAXPROCS(procs)
	}
	return gofuse.NewServer(fs, point, options)
}
