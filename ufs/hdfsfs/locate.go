package hdfsfs

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/proto"

	"millrace/internal/errs"
	"millrace/ufs"
)

// version is what makes one version of a file.
type version struct {
	fileID uint64
	mtime  uint64 // ms
	length int64
}

func versionOf(st *hdfs.FileStatus) version {
	return version{fileID: st.GetFileId(), mtime: st.GetModificationTime(), length: clamp(st.GetLength())}
}

// clamp keeps a length of an answer where arithmetic with it is safe.
func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64>>1)) }

// tag returns the version tag.
func (v version) tag() string { return fmt.Sprintf("%x-%x-%x", v.fileID, v.mtime, v.length) }

// modified returns the modification time.
func (v version) modified() time.Time { return time.UnixMilli(clamp(v.mtime)) }

// check fails with errs.Stale when v is not what obj names.
func (v version) check(obj ufs.Object) error {
	if tag := v.tag(); tag != obj.Tag || v.length != obj.Length {
		return errs.E(errs.Stale, "", "", fmt.Errorf("the version is %s with %d bytes, not %s with %d", tag, v.length, obj.Tag, obj.Length))
	}
	return nil
}

// location is where the blocks of one version of a file are.
type location struct {
	version version
	blocks  []fileBlock // in order, without a gap
}

// fileBlock is one block of a file.
type fileBlock struct {
	start, length int64
	id            []byte   // ExtendedBlockProto
	token         []byte   // TokenProto
	replicas      []string // addresses of DataNodes
	privileged    bool     // all replicas have ports that only root may listen on
}

// end returns the offset behind the block.
func (b *fileBlock) end() int64 { return b.start + b.length }

// locate takes the blocks from what a NameNode says of a file.
func locate(st *hdfs.FileStatus, useHostname bool) (*location, error) {
	switch {
	case st.GetEcPolicy() != nil:
		return nil, errs.E(errs.Unsupported, "", "", errors.New("the file is erasure-coded"))
	case st.GetFileEncryptionInfo() != nil:
		return nil, errs.E(errs.Unsupported, "", "", errors.New("the file is encrypted by HDFS"))
	case st.GetLocations() == nil:
		return nil, errNoLocations()
	}
	l := &location{version: versionOf(st)}
	addresses := make(map[string]string) // so that each is there once
	end := int64(0)
	for _, located := range st.GetLocations().GetBlocks() {
		b := fileBlock{start: clamp(located.GetOffset()), length: clamp(located.GetB().GetNumBytes()), privileged: true}
		if b.start != end {
			return nil, errs.E(errs.Unavailable, "", "", fmt.Errorf("the NameNode tells of a block at %d, not at %d", b.start, end))
		}
		end = b.end()
		var err error
		if b.id, err = proto.Marshal(located.GetB()); err != nil {
			return nil, err
		}
		if b.token, err = proto.Marshal(located.GetBlockToken()); err != nil {
			return nil, err
		}
		for _, node := range located.GetLocs() {
			host := node.GetId().GetIpAddr()
			if useHostname {
				host = node.GetId().GetHostName()
			}
			port := node.GetId().GetXferPort()
			address := net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
			if known, ok := addresses[address]; ok {
				address = known
			}
			addresses[address] = address
			b.replicas = append(b.replicas, address)
			b.privileged = b.privileged && port < 1024
		}
		l.blocks = append(l.blocks, b)
	}
	return l, nil
}

// errNoLocations is what an answer without locations means: the request could
// not be completed by them, since it is wrapped.
func errNoLocations() error {
	return errs.E(errs.Unsupported, "", "", errors.New("the NameNode does not tell where blocks are: hadoop.rpc.protection other than authentication is not supported"))
}

// at returns the block that holds offset.
func (l *location) at(offset int64) (*fileBlock, error) {
	i := sort.Search(len(l.blocks), func(i int) bool { return l.blocks[i].end() > offset })
	if i == len(l.blocks) {
		return nil, errs.E(errs.Unavailable, "", "", fmt.Errorf("the NameNode tells of no block at %d", offset))
	}
	return &l.blocks[i], nil
}

// complete reports whether each block has a replica.
func (l *location) complete() bool {
	return !slices.ContainsFunc(l.blocks, func(b fileBlock) bool { return len(b.replicas) == 0 })
}

// Bounds of what a store remembers of locations: with three replicas a block
// takes some 300 bytes.
const (
	maxLocations = 1 << 12
	maxBlocks    = 1 << 16
)

// locations remembers where the blocks of files are, the last used ones.
// It is safe for concurrent use.
type locations struct {
	mu     sync.Mutex
	byFile map[ufs.Object]*list.Element
	used   *list.List // of *remembered, the last used first
	blocks int
}

// remembered is one entry of locations.
type remembered struct {
	file     ufs.Object
	location *location
}

func newLocations() *locations {
	return &locations{byFile: make(map[ufs.Object]*list.Element), used: list.New()}
}

// get returns the location of a version, nil if it is not known.
func (l *locations) get(file ufs.Object) *location {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.byFile[file]
	if !ok {
		return nil
	}
	l.used.MoveToFront(e)
	return e.Value.(*remembered).location //nolint:forcetypeassert // nothing else is in it
}

// put remembers the location of a version, and forgets others for it.
func (l *locations) put(file ufs.Object, at *location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(file)
	l.byFile[file] = l.used.PushFront(&remembered{file: file, location: at})
	l.blocks += len(at.blocks)
	for l.used.Len() > 1 && (l.used.Len() > maxLocations || l.blocks > maxBlocks) {
		l.remove(l.used.Back().Value.(*remembered).file) //nolint:forcetypeassert // nothing else is in it
	}
}

// drop forgets the location of a version.
func (l *locations) drop(file ufs.Object) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(file)
}

func (l *locations) remove(file ufs.Object) {
	e, ok := l.byFile[file]
	if !ok {
		return
	}
	delete(l.byFile, file)
	l.blocks -= len(l.used.Remove(e).(*remembered).location.blocks) //nolint:forcetypeassert // nothing else is in it
}
