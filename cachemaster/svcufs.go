package cachemaster

import (
	"context"
	"errors"
	"maps"
	"slices"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

// ufsService keeps the under-store mount table.
type ufsService struct {
	api.UnimplementedUFSServiceServer

	m *Master
}

// AddUFS implements api.UFSServiceServer. The same under-store with the same
// options at the same path again is a success, without a look at it: a
// cluster that starts while its under-store is away serves what it cached. A
// path that is taken is left to the state machine to refuse: this may be the
// repetition of a call that it has answered.
func (s *ufsService) AddUFS(ctx context.Context, r *api.AddUFSRequest) (*api.AddUFSReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	p := string(r.GetPath())
	c, err := parseMount(s.m.cfg, p, r.GetUri(), r.GetOptions())
	if err != nil {
		return nil, err
	}
	command := fsm.Command{Key: r.GetIdempotencyKey(), AddUFS: c}
	st := s.m.store.State()
	if i := slices.IndexFunc(st.Mounts, func(m fsm.Mount) bool { return m.Path == c.Path }); i >= 0 {
		m := &st.Mounts[i]
		if m.URI != c.URI || !maps.Equal(m.Options, c.Options) {
			result, err := s.m.raft.apply(ctx, command)
			if err != nil {
				return nil, err
			}
			m = result.Mount
		}
		return &api.AddUFSReply{Mount: mountProto(m)}, nil
	}
	store, err := s.m.probe(ctx, c)
	if err != nil {
		return nil, err
	}
	result, err := s.m.raft.apply(ctx, command)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	s.m.ns.stores.adopt(s.m.store.State, result.Mount.ID, store)
	return &api.AddUFSReply{Mount: mountProto(result.Mount)}, nil
}

// probe opens an under-store that is to be added, and looks at it. The caller
// closes it.
func (m *Master) probe(ctx context.Context, c *fsm.AddUFS) (ufs.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.ProbeTimeout.Std())
	defer cancel()
	store, err := m.ns.stores.dial(ctx, c.URI, c.Options)
	if err != nil {
		return nil, errs.Wrap(err, "add under-store", string(c.Path))
	}
	if err := answers(ctx, store, c.URI); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// answers returns nil if an under-store can be listed.
func answers(ctx context.Context, store ufs.Store, uri string) error {
	for _, err := range store.List(ctx, "", ufs.ListOptions{}) {
		if err != nil {
			return errs.Wrap(err, "look at under-store", uri)
		}
		break // it is there; the first entry says so
	}
	if ctx.Err() != nil {
		return errs.Wrap(ctx.Err(), "look at under-store", uri)
	}
	return nil
}

// ListUFS implements api.UFSServiceServer.
func (s *ufsService) ListUFS(ctx context.Context, _ *api.ListUFSRequest) (*api.ListUFSReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	return &api.ListUFSReply{Mounts: mountsProto(s.m.store.State())}, nil
}

// RemoveUFS implements api.UFSServiceServer.
func (s *ufsService) RemoveUFS(ctx context.Context, r *api.RemoveUFSRequest) (*api.RemoveUFSReply, error) {
	if _, err := s.m.begin(ctx, 0); err != nil {
		return nil, err
	}
	p := string(r.GetPath())
	if err := checkPath(p); err != nil {
		return nil, err
	}
	c := fsm.Command{Key: r.GetIdempotencyKey(), RemoveUFS: &fsm.RemoveUFS{Path: fsm.Path(p)}}
	if _, err := s.m.raft.apply(ctx, c); err != nil {
		return nil, err
	}
	return &api.RemoveUFSReply{}, nil
}
