package cachemaster

import (
	"context"
	"log/slog"
	"sync"

	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

// stores holds the open under-stores, one for each under-store mount. A store
// whose mount was removed is closed when its last user is done.
type stores struct {
	registry ufs.Registry
	observer ufs.Observer
	log      *slog.Logger

	mu     sync.Mutex
	open   map[uint64]*openStore
	closed bool
}

type openStore struct {
	store ufs.Store
	users int
	gone  bool // its mount was removed, or the master stops
}

func newStores(registry ufs.Registry, observer ufs.Observer, log *slog.Logger) *stores {
	return &stores{registry: registry, observer: observer, log: log, open: make(map[uint64]*openStore)}
}

// dial opens an under-store that is no mount yet. The caller closes it.
func (s *stores) dial(ctx context.Context, uri string, options map[string]string) (ufs.Store, error) {
	return s.registry.Open(ctx, ufs.Config{URI: uri, Options: options, Observer: s.observer})
}

// adopt takes over a store that dial opened, as that of the mount that it
// became. One that is not needed is closed.
func (s *stores) adopt(st func() *fsm.State, id uint64, store ufs.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A removal that comes later finds the store in the table.
	_, bound := st().MountByID(id)
	if s.closed || !bound || s.open[id] != nil {
		s.closeIdle(&openStore{store: store, gone: true})
		return
	}
	s.open[id] = &openStore{store: store}
}

// use returns the store of m. release must be called when its use has ended.
func (s *stores) use(ctx context.Context, m fsm.Mount) (_ ufs.Store, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errs.E(errs.Unavailable, "open under-store", m.URI, errStopping)
	}
	o := s.open[m.ID]
	if o == nil {
		// Opening asks nothing of the server, so nobody waits here for long.
		store, err := s.dial(ctx, m.URI, m.Options)
		if err != nil {
			return nil, nil, err
		}
		o = &openStore{store: store}
		s.open[m.ID] = o
	}
	o.users++
	return o.store, sync.OnceFunc(func() { s.release(o) }), nil
}

func (s *stores) release(o *openStore) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.users--
	s.closeIdle(o)
}

// closeIdle closes a store that is gone and that nobody uses.
func (s *stores) closeIdle(o *openStore) {
	if !o.gone || o.users > 0 {
		return
	}
	if err := o.store.Close(); err != nil {
		s.log.Warn("under-store was not closed cleanly", "error", err)
	}
}

// retain closes the stores whose mount is not in the table any more.
func (s *stores) retain(st *fsm.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range s.open {
		if _, ok := st.MountByID(id); !ok {
			s.drop(id, o)
		}
	}
}

// close closes all stores; those in use at the end of their use.
func (s *stores) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, o := range s.open {
		s.drop(id, o)
	}
}

func (s *stores) drop(id uint64, o *openStore) {
	delete(s.open, id)
	o.gone = true
	s.closeIdle(o)
}
