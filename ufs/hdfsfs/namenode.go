package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"millrace/internal/errs"
	"millrace/internal/wait"
	"millrace/ufs"
	"millrace/ufs/ufslimit"
)

// Bounds of one call, all its attempts together. A caller whose context ends
// earlier has less.
const (
	callBudget = 30 * time.Second
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// nameNode calls the NameNodes. The library allows one call at a time on each
// of its clients and knows neither deadlines nor contexts; so a client here is
// of one caller at a time, and one that failed is thrown away: it would go on
// with the rest of an answer, or refuse its NameNode for 5 s.
type nameNode struct {
	settings settings
	limiter  *ufslimit.Limiter
	observer ufs.Observer
	slots    chan *client // nil: to be connected
	budget   time.Duration

	mu        sync.Mutex
	addresses []string // those that failed last are last
}

func newNameNode(set settings, limiter *ufslimit.Limiter, observer ufs.Observer) *nameNode {
	n := &nameNode{
		settings: set, limiter: limiter, observer: observer, budget: callBudget,
		slots: make(chan *client, set.clients), addresses: slices.Clone(set.nameNodes),
	}
	for range set.clients {
		n.slots <- nil
	}
	return n
}

// close closes all clients. No call may be under way.
func (n *nameNode) close() {
	for range cap(n.slots) {
		if c := <-n.slots; c != nil {
			c.close()
		}
	}
	if k := n.settings.kerberos; k != nil {
		k.Destroy()
	}
}

// extras are what a call asks for besides what the library asks for.
type extras struct {
	located bool   // the locations of blocks
	after   string // a listing starts behind this name
}

// call does one call of the library, and repeats it while NameNodes fail or
// none is active: until the context ends, or the budget is used up.
func (n *nameNode) call(ctx context.Context, op string, more extras, do func(*hdfs.Client) error) error {
	end := time.Now().Add(n.budget)
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		if err := n.limiter.Request(ctx); err != nil {
			return err
		}
		err := n.try(ctx, op, more, do)
		if err == nil || !passes(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		delay := pause/2 + rand.N(pause)
		if time.Now().Add(delay).After(end) {
			return errs.E(errs.Unavailable, "", "", fmt.Errorf("NameNode: %w", err))
		}
		if err := wait.For(ctx, delay); err != nil {
			return err
		}
	}
}

// try does one attempt.
func (n *nameNode) try(ctx context.Context, op string, more extras, do func(*hdfs.Client) error) error {
	var c *client
	select {
	case c = <-n.slots:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c != nil && c.isBroken() {
		c.close()
		c = nil
	}
	defer func() { n.slots <- c }()
	if c == nil {
		fresh := &client{node: n}
		err := fresh.use(ctx, extras{}, func() (err error) {
			fresh.hdfs, err = hdfs.NewClient(n.options(fresh))
			return err
		})
		if fresh.hdfs == nil {
			return err
		}
		c = fresh
	}
	n.observer.Request(op)
	before := c.received.Load()
	err := c.use(ctx, more, func() error { return do(c.hdfs) })
	if op == opList {
		n.observer.ListBytes(c.received.Load() - before)
	}
	if c.isBroken() || (err != nil && passes(err)) {
		c.close()
		c = nil
	}
	return err
}

func (n *nameNode) options(c *client) hdfs.ClientOptions {
	n.mu.Lock()
	defer n.mu.Unlock()
	return hdfs.ClientOptions{
		Addresses: slices.Clone(n.addresses), User: n.settings.user,
		KerberosClient: n.settings.kerberos, KerberosServicePrincipleName: n.settings.nameNodePrincipal,
		NamenodeDialFunc: c.dial,
	}
}

// demote makes address the last one that new clients try.
func (n *nameNode) demote(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.addresses, address); i >= 0 {
		n.addresses = append(slices.Delete(n.addresses, i, i+1), address)
	}
}

// passes reports whether an error may be gone at the next attempt: what the
// NameNode did not say itself, and what it says while it starts or hands over.
func passes(err error) bool {
	var remote hdfs.Error
	if errors.As(err, &remote) {
		switch remote.Exception() {
		case "org.apache.hadoop.ipc.StandbyException",
			"org.apache.hadoop.ipc.RetriableException",
			"org.apache.hadoop.ipc.ObserverRetryOnActiveException",
			"org.apache.hadoop.hdfs.server.namenode.SafeModeException",
			"org.apache.hadoop.ipc.RpcNoSuchProtocolException", // while it starts
			"org.apache.hadoop.hdfs.server.namenode.NotReplicatedYetException":
			return true
		}
		return false
	}
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return false
	}
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid)
}

// client is one of the library's clients, with the connections it talks
// through. It is used by one goroutine at a time, besides the library's own,
// which renews leases that nobody has each second.
type client struct {
	node     *nameNode
	hdfs     *hdfs.Client // nil until it is connected
	received atomic.Int64 // bytes

	mu     sync.Mutex
	ctx    context.Context //nolint:containedctx // of the call under way; nil: none
	more   extras          // of the call under way
	conn   *rpcConn        // the present one
	broken bool
	closed bool
}

// use does one call of the library. When ctx ends, the connection is closed
// under it.
func (c *client) use(ctx context.Context, more extras, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.ctx, c.more = ctx, more
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, c.abort)
	err := call()
	if !stop() {
		c.abort() // it was, or is being, closed
	}
	c.mu.Lock()
	c.ctx, c.more = nil, extras{}
	c.mu.Unlock()
	return err
}

// complete adds to a request what the call under way wants besides. Where the
// second piece of a listing starts the library knows itself.
func (c *client) complete(packet []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.more.located {
		return packet
	}
	packet, method := withLocations(packet, c.more.after)
	if method == methodListing {
		c.more.after = ""
	}
	return packet
}

func (c *client) isBroken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// abort ends what is under way.
func (c *client) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	if c.conn != nil {
		_ = c.conn.Conn.Close() // nobody reads the rest
	}
}

// close ends the client and its goroutine.
func (c *client) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.abort()
	_ = c.hdfs.Close() // the connection is closed already
}

// arm sets the deadline of a request and its answer.
func (c *client) arm(conn *rpcConn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return net.ErrClosed
	}
	return conn.SetDeadline(time.Now().Add(c.node.settings.nameNodeTimeout))
}

// fail says that conn serves nobody any more, and that its NameNode is to be
// tried last; unless that is our own doing.
func (c *client) fail(conn *rpcConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn && !c.broken {
		c.broken = true
		c.node.demote(conn.address)
	}
}

// left is told that the library closes conn, which it does to a NameNode that
// is a standby, and goes on with the next.
func (c *client) left(conn *rpcConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn && !c.broken {
		c.conn = nil
		c.node.demote(conn.address)
	}
}

// dial connects the library to a NameNode, within the context of the call under
// way: that of the library is the background's.
func (c *client) dial(ctx context.Context, network, address string) (net.Conn, error) { //nolint:contextcheck // it is the caller's, where the library has none
	c.mu.Lock()
	if c.ctx != nil {
		ctx = c.ctx
	}
	refuse := c.closed || c.broken
	c.mu.Unlock()
	if refuse {
		return nil, net.ErrClosed
	}
	dialer := net.Dialer{Timeout: c.node.settings.nameNodeTimeout}
	raw, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		if ctx.Err() == nil {
			c.node.demote(address)
		}
		return nil, err
	}
	conn := &rpcConn{Conn: raw, owner: c, address: address}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.broken {
		_ = raw.Close() // unused
		return nil, net.ErrClosed
	}
	c.conn = conn
	return conn, nil
}
