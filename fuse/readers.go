package fuse

import (
	"runtime"
	"sync"
)

// deviceReaders is how many goroutines wait for the kernel's requests: each of
// them has a thread that blocks in read(2), and a buffer of maxRequest, of
// which it touches what requests are long.
const deviceReaders = 8

// settingProcs is held by who changes GOMAXPROCS.
var settingProcs sync.Mutex //nolint:gochecknoglobals // what it guards is the process's

// makeReadersRoom lets the runtime run deviceReaders threads more than it did,
// until giveBack is called, for two reasons.
//
// A thread that blocks in read(2) keeps its share of GOMAXPROCS until the
// runtime's monitor notices and takes it away. With no more shares than
// processors, nobody answers meanwhile: with eight programs that open small
// files, 7,800 files a second became 11,000, at less CPU.
//
// And go-fuse keeps as many readers as GOMAXPROCS says when the mount begins.
// With more requests under way it starts a reader for nearly each of them, and
// ends it behind its answer; with every one a stack grows from nothing.
func makeReadersRoom() (giveBack func()) {
	add := func(n int) {
		settingProcs.Lock()
		defer settingProcs.Unlock()
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	}
	add(deviceReaders)
	return func() { add(-deviceReaders) }
}
