package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"millrace/bench/rig"
	"millrace/internal/testenv"
)

// object is one object through its versions, all of one length, so that
// nothing but the bytes tells them apart.
type object struct {
	key  string
	size int64

	change sync.Mutex // held by who changes it

	mu       sync.Mutex
	versions []*version
}

// version is what the object was for a time.
type version struct {
	number  int
	absent  bool // deleted
	content *rig.Content
	begins  time.Time // before the request
	sure    time.Time // after its answer; zero before
}

// begin enters the next version, which S3 may have from now on.
func (o *object) begin(absent bool) *version {
	o.mu.Lock()
	defer o.mu.Unlock()
	v := &version{number: len(o.versions), absent: absent, begins: time.Now()}
	v.content = rig.NewContent(fmt.Sprintf("%s@%d", o.key, v.number), o.size)
	o.versions = append(o.versions, v)
	return v
}

func (o *object) done(v *version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v.sure = time.Now()
}

// put stores a new version.
func (o *object) put(ctx context.Context, server *testenv.S3Process) error {
	o.change.Lock()
	defer o.change.Unlock()
	v := o.begin(false)
	data := make([]byte, o.size)
	v.content.ReadAt(data, 0)
	if _, err := server.PutObject(ctx, bucket, o.key, bytes.NewReader(data)); err != nil {
		return err
	}
	o.done(v)
	return nil
}

// remove deletes the object.
func (o *object) remove(ctx context.Context, server *testenv.S3Process) error {
	o.change.Lock()
	defer o.change.Unlock()
	v := o.begin(true)
	name := bucket
	if _, err := server.Client().DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &name, Key: &o.key}); err != nil {
		return err
	}
	o.done(v)
	return nil
}

// possible returns the versions that may be seen by who opened the object at
// that time and has just been answered: those that were not surely replaced
// for longer than an answer may be used.
func (o *object) possible(opened time.Time) []*version {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []*version
	for i, v := range o.versions {
		if i+1 < len(o.versions) {
			next := o.versions[i+1]
			if !next.sure.IsZero() && opened.Sub(next.sure) > ttl+outage {
				continue
			}
		}
		list = append(list, v)
	}
	return list
}

// changed reports whether the object may have changed for who opened it then.
func (o *object) changed(opened time.Time) bool { return len(o.possible(opened)) > 1 }

func (o *object) mayBeAbsent(opened time.Time) bool {
	return slices.ContainsFunc(o.possible(opened), func(v *version) bool { return v.absent })
}

// narrow returns those of the versions whose bytes at off are p.
func narrow(list []*version, p []byte, off int64) []*version {
	var left []*version
	scratch := make([]byte, len(p))
	for _, v := range list {
		if !v.absent && v.content.Check(p, off, scratch) == nil {
			left = append(left, v)
		}
	}
	return left
}

func numbers(list []*version) (n []int) {
	for _, v := range list {
		n = append(n, v.number)
	}
	return n
}

// isCurrent reads the whole object below the mount and holds it against the
// last version.
func (o *object) isCurrent(point string) error {
	o.mu.Lock()
	all := slices.Clone(o.versions)
	o.mu.Unlock()
	last := all[len(all)-1]
	f, err := os.Open(filepath.Join(point, o.key))
	if last.absent {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = errors.Join(errors.New("it is there"), f.Close())
		}
		return fmt.Errorf("%s, which was deleted: %w", o.key, err)
	}
	if err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", o.key, err)
	}
	if int64(len(data)) != o.size || len(narrow([]*version{last}, data, 0)) == 0 {
		return fmt.Errorf("%s: %d bytes, which are of the versions %v, not %d", o.key, len(data), numbers(narrow(all, data, 0)), last.number)
	}
	return nil
}
