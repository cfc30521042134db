package main

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"millrace/block"
	"millrace/blockio"
	"millrace/client"
)

// wire is the data plane between hosts: one connection over TCP to the worker,
// as a client on another host has it, and beside it a server that does nothing
// but sendfile and a client that does nothing but read, both of this process.
// TCP is over loopback.
type wire struct {
	conn   *blockio.Conn
	handle uint32
	size   int64

	path     string // of the file that the bare server sends
	listener net.Listener
	served   chan error
}

// dial opens the large object at the worker.
func (r *report) dial(ctx context.Context) (*wire, error) {
	ticket, err := r.ticket(ctx)
	if err != nil {
		return nil, err
	}
	w := &wire{size: r.big.Bytes(), path: r.bigPath(r.disk), served: make(chan error, 1)}
	if w.conn, err = blockio.Dial(ctx, "tcp", r.ssd.Worker.Address("data"), blockio.DefaultClientConfig()); err != nil {
		return nil, err
	}
	if w.handle, err = w.conn.Open(ctx, ticket); err != nil {
		return nil, errors.Join(err, w.conn.Close())
	}
	var lc net.ListenConfig
	if w.listener, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, w.conn.Close())
	}
	go func() { w.served <- w.serve() }()
	return w, nil
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

// Close ends the connection and the bare server.
func (w *wire) Close() error {
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
	table := crc32.MakeTable(crc32.Castagnoli)
	return w.readBareAnd(ctx, func(p []byte) { crc32.Checksum(p, table) })
}

func (w *wire) readBareAnd(ctx context.Context, do func([]byte)) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", w.listener.Addr().String())
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

// wireSteps measure the data plane. The bytes are in the page cache.
func (r *report) wireSteps() []step {
	return []step{
		{name: "sendfile server and read client", work: r.bigMiB(), unit: inBytes, before: r.wire.readBare, ready: true, do: r.wire.readBare},
		{name: "sendfile server, read and checksum", work: r.bigMiB(), unit: inBytes, before: r.wire.readBare, ready: true, do: r.wire.readBareSummed},
		{name: "worker over TCP", work: r.bigMiB(), unit: inBytes, before: r.wire.readWorker, ready: true, do: r.wire.readWorker},
		{name: "worker over TCP, 4 KiB", work: wireReads, unit: inReads, before: r.wire.readWorker, ready: true, do: r.wire.readPages},
	}
}
