package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"millrace/bench/rig"
	"millrace/block"
	"millrace/blockio"
	"millrace/client"
)

// wire is the data plane between hosts: one connection over TCP to the worker,
// as a client on another host has it, and beside it a server that does nothing
// but sendfile and a client that does nothing but read, both of this process.
// The clients are on this host's network, or on one of their own.
type wire struct {
	suffix  string       // of the steps' names
	network *rig.Network // where the clients are; nil is here

	conn   *blockio.Conn
	handle uint32
	size   int64

	path     string // of the file that the bare server sends
	listener net.Listener
	served   chan error
}

// dialAll opens the large object at the worker, from here and from another
// network.
func (r *report) dialAll(ctx context.Context) error {
	ticket, err := r.ticket(ctx)
	if err != nil {
		return err
	}
	host := "127.0.0.1"
	places := []wire{{}}
	if r.network != nil {
		host = r.network.Here
		places = append(places, wire{suffix: betweenNetworks, network: r.network})
	}
	for _, w := range places {
		w.size, w.path, w.served = r.big.Bytes(), r.bigPath(r.disk), make(chan error, 1)
		if err := w.dial(ctx, host, r.ssd.Worker.Address("data"), ticket); err != nil {
			return fmt.Errorf("the worker as another host%s: %w", w.suffix, err)
		}
		r.wires = append(r.wires, &w)
	}
	return nil
}

func (r *report) closeWires() (err error) {
	for _, w := range r.wires {
		err = errors.Join(err, w.close())
	}
	return err
}

// dial connects to the worker and starts the bare server at host.
func (w *wire) dial(ctx context.Context, host, worker string, ticket *block.Ticket) (err error) {
	err = w.there(func() error {
		w.conn, err = blockio.Dial(ctx, "tcp", worker, blockio.DefaultClientConfig())
		return err
	})
	if err != nil {
		return err
	}
	if w.handle, err = w.conn.Open(ctx, ticket); err != nil {
		return errors.Join(err, w.conn.Close())
	}
	var lc net.ListenConfig
	if w.listener, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0")); err != nil {
		return errors.Join(err, w.conn.Close())
	}
	go func() { w.served <- w.serve() }()
	return nil
}

// there calls f where the clients are.
func (w *wire) there(f func() error) error {
	if w.network == nil {
		return f()
	}
	return w.network.Do(f)
}

func (r *report) ticket(ctx context.Context) (t *block.Ticket, err error) {
	cfg := client.DefaultConfig()
	cfg.Masters = []string{r.ssd.Master.Address("grpc")}
	c, err := client.Dial(ctx, cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	f, err := c.Open(ctx, "/"+r.big.Objects[0].Key)
	if err != nil {
		return nil, err
	}
	return f.Entry().Ticket, f.Close()
}

// close ends the connection and the bare server.
func (w *wire) close() error {
	return errors.Join(w.conn.Close(), w.listener.Close(), <-w.served)
}

// serve sends the file to whoever connects, until the listener is closed.
func (w *wire) serve() error {
	for {
		c, err := w.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		if err := w.send(c); err != nil {
			return err
		}
	}
}

func (w *wire) send(c net.Conn) error {
	defer c.Close()
	f, err := os.Open(w.path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _ = io.Copy(c, f) // by sendfile; who reads sees what is missing
	return nil
}

// readBare reads the file from the bare server, 1 MiB at a time.
func (w *wire) readBare(ctx context.Context) error {
	return w.readBareAnd(ctx, func([]byte) {})
}

// readBareSummed is readBare by a client that computes the checksum of what it
// reads, as ours does.
func (w *wire) readBareSummed(ctx context.Context) error {
	return w.readBareAnd(ctx, func(p []byte) { block.Checksum(p) })
}

func (w *wire) readBareAnd(ctx context.Context, do func([]byte)) error {
	var c net.Conn
	err := w.there(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", w.listener.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // nobody else reads
	buf := make([]byte, 1<<20)
	var got int64
	for got < w.size {
		n, err := io.ReadFull(c, buf[:min(int64(len(buf)), w.size-got)])
		if err != nil {
			return err
		}
		do(buf[:n])
		got += int64(n)
	}
	return nil
}

// readWorker reads the file from the worker, 1 MiB at a time, a few requests
// under way at once, so that there is always one.
func (w *wire) readWorker(ctx context.Context) error {
	const piece, requests = 1 << 20, 4
	return w.read(ctx, piece, requests, w.size/piece)
}

// readPages reads 4 KiB at a time, many requests under way at once.
func (w *wire) readPages(ctx context.Context) error {
	const piece, requests = 4 << 10, 64
	return w.read(ctx, piece, requests, wireReads)
}

func (w *wire) read(ctx context.Context, piece int64, requests int, n int64) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range requests {
		g.Go(func() error {
			buf := make([]byte, piece)
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				if _, err := w.conn.ReadAt(ctx, w.handle, buf, i*piece%w.size, blockio.ReadOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// Names of the steps of a wire, before its suffix.
const (
	wireBare   = "sendfile server and read client"
	wireSummed = "sendfile server, read and checksum"
	wireWorker = "worker over TCP"
	wirePages  = "worker over TCP, 4 KiB"

	betweenNetworks = ", between networks"
)

// wireSteps measure the data plane. The bytes are in the page cache, where the
// first reads of each file bring them.
func (r *report) wireSteps() (steps []step) {
	for i, w := range r.wires {
		add := func(name string, work float64, unit string, do func(context.Context) error, first func(context.Context) error) {
			if i > 0 {
				first = nil // both files are there
			}
			steps = append(steps, step{name: name + w.suffix, work: work, unit: unit, before: first, ready: true, do: do})
		}
		add(wireBare, r.bigMiB(), inBytes, w.readBare, w.readBare)
		add(wireSummed, r.bigMiB(), inBytes, w.readBareSummed, nil)
		add(wireWorker, r.bigMiB(), inBytes, w.readWorker, w.readWorker)
		if i == 0 {
			add(wirePages, wireReads, inReads, w.readPages, nil)
		}
	}
	return steps
}
