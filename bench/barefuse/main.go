// Command barefuse mounts a directory through go-fuse's raw API with as little
// in between as there can be: it is what the mount is compared with. Files are
// handed to the kernel (passthrough) or read into go-fuse's buffer (copy).
//
//	barefuse passthrough|copy DIRECTORY MOUNTPOINT
//
// It prints one line when the mount answers, and unmounts when it is asked to
// end. What is in the directory is looked at once, at the start; node IDs are
// numbers of a table, and names and attributes stand for an hour. It needs
// root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("barefuse", run)) }

func run(ctx context.Context, args []string) error {
	if len(args) != 3 || args[0] != "passthrough" && args[0] != "copy" {
		return errors.New("usage: barefuse passthrough|copy DIRECTORY MOUNTPOINT")
	}
	fs, err := newTree(args[1], args[0] == "passthrough")
	if err != nil {
		return err
	}
	server, err := gofuse.NewServer(fs, args[2], &gofuse.MountOptions{
		Name: "barefuse", FsName: args[1],
		MaxBackground:            64,
		MaxWrite:                 1 << 20,
		MaxReadAhead:             1 << 20,
		IgnoreSecurityLabels:     true,
		ExplicitDataCacheControl: true,
		DirectMountStrict:        true,
		DirectMountFlags:         unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY,
	})
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		return errors.Join(err, server.Unmount())
	}
	fmt.Println("ready")
	select {
	case <-served: // somebody else unmounted
		return nil
	case <-ctx.Done():
	}
	if err := unmount(server); err != nil {
		return err
	}
	<-served
	return nil
}

// unmount waits a little for readers that are being ended too.
func unmount(server *gofuse.Server) error {
	var err error
	for range 50 {
		if err = server.Unmount(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
