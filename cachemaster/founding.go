package cachemaster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/raft"

	"millrace/api"
	"millrace/internal/errs"
)

// A vote that a master gave and forgot, with its disk, could be given twice,
// and what it acknowledged could be lost. So an empty disk takes part in two
// cases only. Either it is one of those that the group is founded with: each
// disk has a random mark, every founder must have been seen with an empty disk
// at the same time, each remembers the marks that it saw, and none takes part
// whose mark one of the others does not know. Or the group does not count on
// this master: it was removed, which is committed by a majority that the
// forgotten votes are not part of, and waits to be added.

// founding is what the data directory keeps of the founding of the group.
type founding struct {
	// Disk is the mark of this disk, drawn when it was empty.
	Disk string `json:"disk"`
	// Disks are the marks of the other founders' disks, by ID. Nil: this
	// master has not seen all of them.
	Disks map[string]string `json:"disks,omitempty"`
}

const (
	foundingFile = "founding.json"
	// foundingPause is between two rounds of asking the other founders.
	foundingPause = 200 * time.Millisecond
	// groupTimeout bounds one question to another master.
	groupTimeout = time.Second
	// foundingPatience is after what time it is logged whom the founding waits
	// for.
	foundingPatience = 10 * time.Second
)

// markDisk draws a disk's mark, if it has none. It comes before everything
// else: the mark that others were told must be the one that is kept.
func markDisk(dir string) error {
	_, err := readFounding(dir)
	if errors.Is(err, os.ErrNotExist) {
		err = founding{Disk: rand.Text()}.write(dir)
	}
	return err
}

// readFounding returns what the data directory keeps.
func readFounding(dir string) (founding, error) {
	path := filepath.Join(dir, foundingFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return founding{}, errs.Wrap(err, "read", path)
	}
	var f founding
	if err := json.Unmarshal(b, &f); err != nil {
		return founding{}, errs.E(errs.Corrupt, "read", path, err)
	}
	return f, nil
}

func (f founding) write(dir string) error {
	b, err := json.Marshal(f)
	if err != nil {
		return errs.Wrap(err, "encode founding of", dir)
	}
	return errs.Wrap(renameio.WriteFile(filepath.Join(dir, foundingFile), append(b, '\n'), 0o600), "write founding in", dir)
}

// enter brings this master into the group: one that was there before goes on,
// one of several founders waits for the others, any other waits until the
// group does not count on it, or no more.
func (m *Master) enter(ctx context.Context) error {
	if !m.fresh.Load() {
		return m.raft.start(nil)
	}
	if m.founder() {
		founders, err := m.found(ctx)
		if err != nil {
			return err
		}
		if len(founders) > 0 {
			m.fresh.Store(false) // from here on it may vote
			return m.raft.start(founders)
		}
	}
	if err := m.awaitRemoval(ctx); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "this master waits to be added to the group", "command", "millrace masters add "+m.raft.id)
	m.fresh.Store(false)
	return m.raft.start(nil)
}

// founder reports whether the configuration counts this master among those
// that found the group.
func (m *Master) founder() bool {
	return len(m.cfg.Voters) == 0 || slices.ContainsFunc(m.cfg.Voters, func(v Voter) bool { return v.ID == m.raft.id })
}

// found waits until all founders are there and returns them. It returns none
// if one of them is in a group that this disk does not belong to.
func (m *Master) found(ctx context.Context) ([]raft.Server, error) {
	founding, err := readFounding(m.deps.DataDir)
	if err != nil {
		return nil, err
	}
	began, told := m.now(), false
	for {
		heard := m.askFounders(ctx, founding.Disk)
		var missing []string
		founding.Disks = map[string]string{}
		for _, v := range m.cfg.Voters {
			reply := heard[v.ID]
			switch {
			case v.ID == m.raft.id:
			case reply == nil:
				missing = append(missing, v.ID)
			case reply.GetFounded() && !reply.GetKnown():
				return nil, nil
			default:
				founding.Disks[v.ID] = reply.GetDisk()
			}
		}
		if len(missing) == 0 {
			return m.raft.founders(), founding.write(m.deps.DataDir)
		}
		if !told && m.now().Sub(began) > foundingPatience {
			told = true
			m.log.WarnContext(ctx, "the group is founded when all of its masters are up",
				"missing", strings.Join(missing, ", "), "asked", strings.Join(m.others(), ", "))
		}
		if err := sleep(ctx, m.clock, foundingPause); err != nil {
			return nil, err
		}
	}
}

// askFounders asks the other masters about the founding, and returns what they
// said by their IDs.
func (m *Master) askFounders(ctx context.Context, disk string) map[string]*api.FoundReply {
	if len(m.cfg.Voters) < 2 {
		return nil
	}
	replies := m.group.askAll(ctx, m.others(), func(ctx context.Context, c api.GroupServiceClient) (*api.FoundReply, error) {
		return c.Found(ctx, &api.FoundRequest{Id: m.raft.id, Disk: disk})
	})
	heard := make(map[string]*api.FoundReply, len(replies))
	for _, r := range replies {
		heard[r.GetId()] = r
	}
	return heard
}

// awaitRemoval waits until the leader says that the group does not count on
// this master.
func (m *Master) awaitRemoval(ctx context.Context) error {
	told := false
	for {
		reply, err := m.announceOnce(ctx)
		switch {
		case err == nil && !reply.GetMember():
			return nil
		case err == nil && !told:
			told = true
			m.log.WarnContext(ctx, "this master's disk is empty, but the group counts on what it held: it takes no part until it is removed",
				"command", "millrace masters remove "+m.raft.id)
		}
		if err := sleep(ctx, m.clock, announceInterval); err != nil {
			return err
		}
	}
}

// others returns the gRPC addresses of the other masters, as far as they are
// known.
func (m *Master) others() []string {
	known := map[string]bool{}
	for _, a := range m.deps.Masters {
		known[a] = true
	}
	for _, o := range m.store.State().Masters {
		if o.ID != m.raft.id {
			known[o.GRPC] = true
		}
	}
	delete(known, m.grpc)
	delete(known, "")
	return slices.Sorted(maps.Keys(known))
}

// Found implements api.GroupServiceServer.
func (s *groupService) Found(_ context.Context, r *api.FoundRequest) (*api.FoundReply, error) {
	m := s.m
	if r.GetId() == m.raft.id {
		return nil, errs.E(errs.Invalid, "found group", r.GetId(), errors.New("two masters have this ID, or this one asked itself"))
	}
	// In this order: what is founded is in the file, and not the other way round.
	founded := !m.fresh.Load()
	f, err := readFounding(m.deps.DataDir)
	if err != nil {
		return nil, err
	}
	return &api.FoundReply{
		Id: m.raft.id, Disk: f.Disk, Founded: founded,
		Known: r.GetDisk() != "" && f.Disks[r.GetId()] == r.GetDisk(),
	}, nil
}
