package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"millrace/internal/errs"
	"millrace/internal/rpcconn"
	"millrace/internal/rpcerr"
)

const (
	// maxHops bounds how often a call follows masters that name each other as
	// the leader before it waits a moment.
	maxHops = 4
	// maxMasters bounds the addresses that are remembered.
	maxMasters = 32
	// maxLeaderPause bounds the wait between two attempts to find a leader, and
	// how long the masters have to say who leads: an election takes a second or
	// two.
	maxLeaderPause = 200 * time.Millisecond
)

// masters are the connections to the masters, and which of them leads.
type masters struct {
	cfg *Config
	// seen is the highest applied index of any answer: the leader must not
	// answer from an older state.
	seen atomic.Uint64

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	addrs  []string      // configured first, then those that were named
	next   int           // of addrs, to be tried when no leader is known
	leader string        // who answered last, or was named
	search chan struct{} // closed when the search for the leader that is under way has ended
	closed bool
}

func newMasters(cfg *Config) *masters {
	return &masters{cfg: cfg, conns: make(map[string]*grpc.ClientConn), addrs: slices.Clone(cfg.Masters)}
}

func (m *masters) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	var list []error
	for _, cc := range m.conns {
		list = append(list, cc.Close())
	}
	clear(m.conns)
	return errors.Join(list...)
}

// pick returns the connection to the presumed leader.
func (m *masters) pick() (string, *grpc.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr := m.leader
	if addr == "" {
		addr = m.addrs[m.next%len(m.addrs)]
	}
	cc, err := m.conn(addr)
	return addr, cc, err
}

// conn returns the connection to a master. The lock is held.
func (m *masters) conn(addr string) (*grpc.ClientConn, error) {
	if m.closed {
		return nil, errs.E(errs.Canceled, "", "", errors.New("the client is closed"))
	}
	if cc := m.conns[addr]; cc != nil {
		return cc, nil
	}
	cc, err := rpcconn.Dial(addr)
	if err != nil {
		return nil, err
	}
	m.conns[addr] = cc
	return cc, nil
}

// known returns the presumed leader; "" if there is none.
func (m *masters) known() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader
}

// answered remembers who leads.
func (m *masters) answered(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader = addr
}

// failed makes the next pick try another master.
func (m *masters) failed(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader == addr {
		m.leader = ""
	}
	if i := slices.Index(m.addrs, addr); i >= 0 && i == m.next%len(m.addrs) {
		m.next = i + 1
	}
}

// moved follows what a master said about the leader. It reports whether the
// next pick is worth trying at once.
func (m *masters) moved(from, leader string) bool {
	if leader == "" || leader == from {
		m.failed(from)
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.addrs, leader) {
		if len(m.addrs) >= maxMasters {
			return false
		}
		m.addrs = append(m.addrs, leader)
	}
	m.leader = leader
	return true
}

// sawIndex remembers the applied index of an answer.
func (m *masters) sawIndex(index uint64) {
	for {
		old := m.seen.Load()
		if index <= old || m.seen.CompareAndSwap(old, index) {
			return
		}
	}
}

// repeatable says when a call may be sent again.
type repeatable int

const (
	// always: it changes nothing, or the master knows it by its key.
	always repeatable = iota
	// ifRefused: only when the master surely did not do it.
	ifRefused
)

// call runs f, which may be repeated, against the leader with a deadline for
// each attempt, until it succeeds, fails for good, or the retry budget is
// spent.
func (m *masters) call(ctx context.Context, op, path string, f func(context.Context, *grpc.ClientConn) error) error {
	err := m.retry(ctx, always, func(ctx context.Context, cc *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, m.cfg.CallTimeout.Std())
		defer cancel()
		return f(ctx, cc)
	})
	return errs.WrapOnce(err, op, path)
}

// retry runs f against the leader, following it and repeating f as how allows,
// until it succeeds, fails for good, or the retry budget is spent. The context
// that f gets ends with f.
func (m *masters) retry(ctx context.Context, how repeatable, f func(context.Context, *grpc.ClientConn) error) error {
	budget, cancel := context.WithTimeout(ctx, m.cfg.RetryFor.Std())
	defer cancel()
	if how != always && m.known() == "" {
		m.find(budget) // one that is not there would end it
	}
	var p pause
	for hops := 0; ; {
		addr, cc, err := m.pick()
		if err != nil {
			return err
		}
		if err = m.attempt(ctx, budget, how, addr, cc, f); err == nil {
			m.answered(addr)
			return nil
		}
		if ctx.Err() != nil {
			return errs.E(errs.KindOf(ctx.Err()), "", "", err)
		}
		switch errs.KindOf(err) {
		case errs.NotLeader:
			nl, ok := errors.AsType[*rpcerr.NotLeader](err)
			named := ok && m.moved(addr, nl.Leader)
			if named && hops < maxHops {
				hops++
				continue
			}
			if !named {
				m.failed(addr)
			}
			hops = 0
		case errs.Unavailable, errs.Timeout:
			m.failed(addr)
			if how != always {
				return fmt.Errorf("master %s: %w", addr, err)
			}
		default:
			m.answered(addr) // it leads, or it would not have looked
			return err
		}
		p.next = min(p.next, maxLeaderPause)
		if !p.wait(budget, nil) {
			if ctx.Err() != nil {
				return errs.E(errs.KindOf(ctx.Err()), "", "", err)
			}
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("no master could answer within %v; %s said: %w", m.cfg.RetryFor, addr, err))
		}
		m.find(budget)
	}
}
