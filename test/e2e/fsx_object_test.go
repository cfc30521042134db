package e2e_test

import (
	"fmt"
	"sync"
	"time"

	"millrace/bench/rig"
)

// fsxObject is an object through its versions, all of one length, so that
// nothing but the bytes tells them apart.
type fsxObject struct {
	key  string
	size int64

	mu       sync.Mutex
	made     int           // versions so far
	versions []*fsxVersion // but those that were replaced long ago
}

// fsxVersion is what the object was for a time.
type fsxVersion struct {
	number  int
	content *rig.Content
	sure    time.Time // when it surely was there; zero before
}

// begin enters the next version, which may be seen from now on.
func (o *fsxObject) begin() *fsxVersion {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.versions) > 1 && !o.versions[1].sure.IsZero() && time.Since(o.versions[1].sure) > fsxForget {
		o.versions = o.versions[1:]
	}
	v := &fsxVersion{number: o.made}
	o.made++
	v.content = rig.NewContent(fmt.Sprintf("%s@%d", o.key, v.number), o.size)
	o.versions = append(o.versions, v)
	return v
}

func (o *fsxObject) done(v *fsxVersion) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v.sure = time.Now()
}

// possible returns the versions that may be seen by who opened the object at
// that time and is answered now: all but those that were surely replaced long
// before.
func (o *fsxObject) possible(opened time.Time) (list []*fsxVersion) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, v := range o.versions {
		if i+1 < len(o.versions) {
			if sure := o.versions[i+1].sure; !sure.IsZero() && opened.Sub(sure) > fsxStale {
				continue
			}
		}
		list = append(list, v)
	}
	return list
}

// narrow returns those of the versions whose bytes at off are p.
func narrow(list []*fsxVersion, p []byte, off int64, scratch []byte) (left []*fsxVersion) {
	for _, v := range list {
		if v.content.Check(p, off, scratch) == nil {
			left = append(left, v)
		}
	}
	return left
}

func numbers(list []*fsxVersion) (n []int) {
	for _, v := range list {
		n = append(n, v.number)
	}
	return n
}
