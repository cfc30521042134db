package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/blockio"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// countedWire tells which requests were made.
type countedWire struct {
	wire

	did      []string
	openRead error
}

func (w *countedWire) Open(context.Context, *block.Ticket) (uint32, error) {
	w.did = append(w.did, "open")
	return 7, nil
}

func (w *countedWire) OpenRead(_ context.Context, _ *block.Ticket, p []byte, _ int64, _ blockio.ReadOptions) (uint32, error) {
	if w.openRead == nil || !errors.Is(w.openRead, errs.Unsupported) { // which a Conn says by itself
		w.did = append(w.did, "open and read")
	}
	clear(p)
	return 7, w.openRead
}

func (w *countedWire) ReadAt(_ context.Context, _ uint32, p []byte, _ int64, _ blockio.ReadOptions) (int, error) {
	w.did = append(w.did, "read")
	return len(p), nil
}

func (w *countedWire) CloseHandle(uint32) { w.did = append(w.did, "close") }

// The first read of a small file registers it in the same round trip.
func TestFirstRead(t *testing.T) {
	for name, tt := range map[string]struct {
		length   int64
		openRead error
		want     []string
	}{
		"small":                    {smallFile, nil, []string{"open and read", "read"}},
		"large":                    {smallFile + 1, nil, []string{"open", "read", "read"}},
		"a worker that cannot":     {1000, errs.Unsupported, []string{"open", "read", "read"}},
		"a worker that fails once": {1000, errs.Unavailable, []string{"open and read", "open and read"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &countedWire{openRead: tt.openRead}
			c := newDataConn(w, 1)
			tk := &block.Ticket{FileID: block.FileID{1}, Length: tt.length}
			for range 2 {
				err := c.readAt(t.Context(), tk, make([]byte, 10), 0, blockio.ReadOptions{})
				if errors.Is(tt.openRead, errs.Unavailable) != (err != nil) {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.want, w.did); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a user reads of a failed read: the path, the cause, what to do; and
// nothing of sockets.
func TestMessages(t *testing.T) {
	cl, w := newLocalCluster(t)
	cl.master.addFile("/dir/a", "1", 100_000, block.DefaultBlockSize, time.Time{})
	c := cl.dial(t, func(c *Config) { c.ReadRetryFor = size.Duration(200 * time.Millisecond) })
	f, err := c.Open(t.Context(), "/dir/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 100)
	for kind, want := range map[errs.Kind]string{
		errs.NotFound:    "read /dir/a: get s3://b/a: the store says so (do that) (it has changed or was deleted since it was opened: open it again)",
		errs.Permission:  "read /dir/a: get s3://b/a: the store says so (do that)",
		errs.Unavailable: "read /dir/a: from worker w0: get s3://b/a: the store says so (do that)",
	} {
		w.failWith(func(*block.Ticket, block.Extent) error {
			return errs.E(kind, "get", "s3://b/a", errors.New("the store says so")).WithHint("do that")
		})
		if _, err := f.ReadAt(p, 0); err == nil || err.Error() != want {
			t.Errorf("%v:\n%v, want\n%s", kind, err, want)
		}
	}
	cl.stops[0]()
	_, err = f.ReadAt(p, 0)
	if err == nil || strings.Contains(err.Error(), w.unix) || !strings.HasPrefix(err.Error(), "read /dir/a: from worker w0: ") || !strings.Contains(err.Error(), "is the worker running?") {
		t.Errorf("a worker that is gone: %v", err)
	}
}
