package cacheworker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/encoding/protojson"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/ufs"
)

// mountsFile holds the mount table in the worker's data directory, 0600 as
// its options may lead to secrets.
const mountsFile = "mounts.json"

// droppingFile holds the IDs of removed mounts whose pages are yet to be
// dropped, as a JSON array.
const droppingFile = "removed-mounts.json"

// mountTable is what the worker knows of the cluster's under-store mounts.
// Stores are opened at first use and closed when the last user of a mount
// that was removed has left.
type mountTable struct {
	registry    ufs.Registry
	observer    ufs.Observer
	concurrency int64                      // requests in flight per mount
	drop        func(mountID uint64) error // forgets what is cached of a removed mount
	recall      func()                     // wants all descriptors back that were handed out
	name        string                     // of the file
	log         *slog.Logger

	retiring sync.WaitGroup

	mu     sync.Mutex
	closed bool
	table  *api.Mounts
	mounts map[uint64]*mount
	// dropping are mounts that were removed and whose pages may still be
	// there, as droppingFile has them.
	dropping []uint64
}

// mount is one version of one under-store mount.
type mount struct {
	spec  *api.UFSMount
	share *share // of the fetcher's gate

	opening chan struct{} // held by who opens or closes the store
	store   ufs.Store

	users   sync.WaitGroup // of the store; Add only under the table's lock while the mount is in it
	removed bool
}

// loadMounts reads the table that the last run left in dataDir.
func (t *mountTable) load(dataDir string) error {
	t.name = filepath.Join(dataDir, mountsFile)
	t.table, t.mounts = &api.Mounts{}, make(map[uint64]*mount)
	if err := t.loadDropping(); err != nil {
		return err
	}
	b, err := os.ReadFile(t.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(err, "read mount table", t.name)
	}
	if err := protojson.Unmarshal(b, t.table); err != nil {
		return errs.E(errs.Corrupt, "read mount table", t.name, err)
	}
	for _, spec := range t.table.GetMounts() {
		t.mounts[spec.GetId()] = t.newMount(spec)
	}
	return nil
}

func (t *mountTable) newMount(spec *api.UFSMount) *mount {
	return &mount{spec: spec, share: &share{most: t.concurrency}, opening: make(chan struct{}, 1)}
}

func (t *mountTable) version() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.table.GetVersion()
}

func (t *mountTable) known(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mounts[id] != nil
}

// verifies reports whether all reads from a mount are to be checked.
func (t *mountTable) verifies(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.mounts[id]
	return m != nil && m.spec.GetOptions()[ufs.OptionVerify] == ufs.VerifyAlways
}

// apply takes a newer table, keeps it on the disk and retires what is gone
// from it. An older one is ignored.
func (t *mountTable) apply(table *api.Mounts) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || table.GetVersion() <= t.table.GetVersion() {
		return nil
	}
	b, err := protojson.Marshal(table)
	if err != nil {
		return errs.Wrap(err, "encode mount table", "")
	}
	if err := t.noteRemoved(table); err != nil {
		return err
	}
	if err := renameio.WriteFile(t.name, b, 0o600); err != nil {
		return errs.Wrap(err, "write mount table", t.name)
	}
	mounts := make(map[uint64]*mount, len(table.GetMounts()))
	for _, spec := range table.GetMounts() {
		old := t.mounts[spec.GetId()]
		if old != nil && old.spec.GetUri() == spec.GetUri() && maps.Equal(old.spec.GetOptions(), spec.GetOptions()) {
			old.spec = spec
			mounts[spec.GetId()] = old
			delete(t.mounts, spec.GetId())
			continue
		}
		mounts[spec.GetId()] = t.newMount(spec)
	}
	for id, old := range t.mounts {
		old.removed = mounts[id] == nil
		t.retiring.Go(func() { t.retire(id, old) })
	}
	changed := len(t.mounts) > 0
	t.table, t.mounts = table, mounts
	if changed { // what was handed out may be to be checked at every read from now on
		t.recall()
	}
	t.log.Info("took the mount table", "version", table.GetVersion(), "mounts", len(mounts))
	return nil
}

// noteRemoved notes which mounts the table takes away, before it is kept: a
// crash in between must not leave pages that nobody asks for any more.
func (t *mountTable) noteRemoved(table *api.Mounts) error {
	ids := slices.Clone(t.dropping)
	for id := range t.mounts {
		stays := slices.ContainsFunc(table.GetMounts(), func(m *api.UFSMount) bool { return m.GetId() == id })
		if !stays && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) == len(t.dropping) {
		return nil
	}
	return t.keepDropping(ids)
}

// retire closes the store of a mount that is no longer in the table when its
// last user has left, and forgets its pages if the mount itself is gone.
func (t *mountTable) retire(id uint64, m *mount) {
	m.users.Wait()
	m.opening <- struct{}{}
	defer func() { <-m.opening }()
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			t.log.Warn("closing an under-store", "mount", id, "err", err)
		}
	}
	if m.removed {
		t.forget(id)
	}
}

// forget drops the pages of a removed mount, and then the note that they are
// to be dropped. What fails is tried again at the next start.
func (t *mountTable) forget(id uint64) {
	if err := t.drop(id); err != nil {
		t.log.Warn("dropping the pages of a removed mount", "mount", id, "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(t.dropping), func(d uint64) bool { return d == id })
	if err := t.keepDropping(left); err != nil {
		t.log.Warn("noting that the pages of a removed mount are dropped", "mount", id, "err", err)
	}
}

// resume drops what the last run was told to drop and did not come to. Like
// all that retires, it is waited for by close.
func (t *mountTable) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range t.dropping {
		if !t.closed && t.mounts[id] == nil {
			t.retiring.Go(func() { t.forget(id) })
		}
	}
}

// keepDropping notes on the disk which mounts' pages are to be dropped. mu is
// held.
func (t *mountTable) keepDropping(ids []uint64) error {
	b, err := json.Marshal(ids)
	if err != nil {
		return errs.Wrap(err, "encode removed mounts", "")
	}
	name := filepath.Join(filepath.Dir(t.name), droppingFile)
	if err := renameio.WriteFile(name, b, 0o600); err != nil {
		return errs.Wrap(err, "write removed mounts", name)
	}
	t.dropping = ids
	return nil
}

// loadDropping reads what keepDropping left.
func (t *mountTable) loadDropping() error {
	name := filepath.Join(filepath.Dir(t.name), droppingFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(err, "read removed mounts", name)
	}
	if err := json.Unmarshal(b, &t.dropping); err != nil {
		return errs.E(errs.Corrupt, "read removed mounts", name, err)
	}
	return nil
}

// use returns the mount with its store open. The caller calls release when it
// makes no further use of them.
func (t *mountTable) use(ctx context.Context, id uint64) (m *mount, release func(), err error) {
	t.mu.Lock()
	m = t.mounts[id]
	if m == nil || t.closed {
		t.mu.Unlock()
		return nil, nil, errs.E(errs.NotFound, "", "", fmt.Errorf("under-store mount %d is not known here", id))
	}
	m.users.Add(1)
	uri, options := m.spec.GetUri(), m.spec.GetOptions()
	t.mu.Unlock()

	select {
	case m.opening <- struct{}{}:
		defer func() { <-m.opening }()
	case <-ctx.Done(): // a store that is slow to open holds nobody who gave up
		m.users.Done()
		return nil, nil, ctx.Err()
	}
	if m.store == nil {
		// The store outlives the request that opens it.
		m.store, err = t.registry.Open(context.WithoutCancel(ctx), ufs.Config{URI: uri, Options: options, Observer: t.observer})
		if err != nil {
			m.store = nil
			m.users.Done()
			return nil, nil, err
		}
	}
	return m, m.users.Done, nil
}

// close retires all mounts but keeps their pages, and returns when their
// stores are closed, or patience is over. It reports whether they are. Nothing
// can be used any more.
func (t *mountTable) close(patience time.Duration) bool {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		for id, m := range t.mounts {
			t.retiring.Go(func() { t.retire(id, m) })
		}
	}
	t.mu.Unlock()
	return waitFor(&t.retiring, patience)
}
