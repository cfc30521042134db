package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/api"
	"millrace/internal/errs"
	"millrace/internal/rpcerr"
	"millrace/internal/size"
)

func TestFollowsTheLeader(t *testing.T) {
	leader, follower := newFakeMaster(), newFakeMaster()
	leader.serve(t, "127.0.0.1:0")
	follower.serve(t, "127.0.0.1:0")
	follower.leader = leader.addr
	leader.addFile("/x", "1", 5, 1<<20, time.Time{})
	c := dial(t, []string{follower.addr})
	for range 3 {
		if e, err := c.Stat(t.Context(), "/x", StatOptions{}); err != nil || e.Size != 5 {
			t.Fatal(e, err)
		}
	}
	if follower.calls.Load() != 1 || leader.calls.Load() != 3 {
		t.Errorf("%d calls to the follower, %d to the leader", follower.calls.Load(), leader.calls.Load())
	}
	// The lead goes over.
	follower.addFile("/x", "2", 6, 1<<20, time.Time{})
	follower.set(func() { follower.leader = "" })
	leader.set(func() { leader.leader = follower.addr })
	if e, err := c.Stat(t.Context(), "/x", StatOptions{}); err != nil || e.Size != 6 {
		t.Fatal(e, err)
	}
}

func TestWaitsForALeader(t *testing.T) {
	m := newFakeMaster()
	m.serve(t, "127.0.0.1:0")
	m.notLeading = true
	m.addFile("/x", "1", 5, 1<<20, time.Time{})
	c := dial(t, []string{m.addr})
	done := make(chan error, 1)
	go func() {
		_, err := c.Stat(t.Context(), "/x", StatOptions{})
		done <- err
	}()
	for m.calls.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	m.set(func() { m.notLeading = false })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFindsALivingMaster(t *testing.T) {
	dead, live := newFakeMaster(), newFakeMaster()
	dead.serve(t, "127.0.0.1:0")()
	live.serve(t, "127.0.0.1:0")
	live.addFile("/x", "1", 5, 1<<20, time.Time{})
	c := dial(t, []string{dead.addr, live.addr})
	if _, err := c.Stat(t.Context(), "/x", StatOptions{}); err != nil {
		t.Error(err)
	}
}

func TestRetriesEnd(t *testing.T) {
	dead := newFakeMaster()
	dead.serve(t, "127.0.0.1:0")()
	c := dial(t, []string{dead.addr}, func(c *Config) { c.RetryFor = size.Duration(200 * time.Millisecond) })
	if _, err := c.Stat(t.Context(), "/x", StatOptions{}); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Stat(ctx, "/x", StatOptions{}); !errors.Is(err, errs.Canceled) {
		t.Error(err)
	}
	for _, err := range c.List(t.Context(), "/", ListOptions{}) {
		if !errors.Is(err, errs.Unavailable) {
			t.Error(err)
		}
	}
}

func TestErrorsAreNotRetried(t *testing.T) {
	c := newCluster(t, 0)
	cl := c.dial(t)
	for _, kind := range []errs.Kind{errs.Permission, errs.Invalid, errs.NotDir, errs.Internal} {
		c.master.failNext = []error{errs.E(kind, "stat", "/x", nil)}
		before := c.master.calls.Load()
		if _, err := cl.Stat(t.Context(), "/x", StatOptions{}); !errors.Is(err, kind) {
			t.Errorf("%v: %v", kind, err)
		}
		if n := c.master.calls.Load() - before; n != 1 {
			t.Errorf("%v: %d calls", kind, n)
		}
	}
	if _, err := cl.Stat(t.Context(), "x", StatOptions{}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestNotFoundHasItsValidity(t *testing.T) {
	c := newCluster(t, 0)
	cl := c.dial(t)
	asked := time.Now()
	_, err := cl.Stat(t.Context(), "/none", StatOptions{})
	first, last := asked.Add(time.Minute), time.Now().Add(time.Minute)
	if until := NotFoundUntil(err); !errors.Is(err, errs.NotFound) || until.Before(first) || until.After(last) {
		t.Errorf("%v, valid until %v, want %v to %v", err, until, first, last)
	}
	c.master.set(func() { c.master.validMS = 0 })
	if _, err = cl.Stat(t.Context(), "/none", StatOptions{}); !errors.Is(err, errs.NotFound) || !NotFoundUntil(err).IsZero() {
		t.Error(err)
	}
	c.master.addFile("/x", "1", 1, 1<<20, time.Time{})
	if e, err := cl.Stat(t.Context(), "/x", StatOptions{}); err != nil || !e.ValidUntil.IsZero() {
		t.Error(err, e)
	}
	// The state that was seen is told, so that no older one answers.
	if last := c.master.seen[len(c.master.seen)-1]; last != 5 {
		t.Errorf("seen index %d", last)
	}
}

func TestWritesAreRepeatedWithTheirKey(t *testing.T) {
	c := newCluster(t, 0)
	cl := c.dial(t)
	c.master.failNext = []error{errs.E(errs.Unavailable, "", "", nil), &rpcerr.NotLeader{}}
	m, err := cl.AddUFS(t.Context(), "/s3/", "s3://b", nil)
	if err != nil || m.ID != 3 || m.Path != "/s3" {
		t.Error(m, err)
	}
	if k := c.master.keys; len(k) != 3 || k[0] == "" || k[0] != k[1] || k[1] != k[2] {
		t.Error(k)
	}
	if _, err := cl.AddUFS(t.Context(), "/s3", "s3://b", nil); err != nil || c.master.keys[3] == c.master.keys[0] {
		t.Error("another call must have another key", err)
	}
	// Free has no key: it is repeated only if it was surely not done.
	c.master.failNext = []error{errs.E(errs.Unavailable, "", "", nil)}
	if _, err := cl.Free(t.Context(), "/"); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	c.master.failNext = []error{&rpcerr.NotLeader{}}
	if f, err := cl.Free(t.Context(), "/"); err != nil || f.Bytes != 9 {
		t.Error(f, err)
	}
}

func TestListIsResumed(t *testing.T) {
	for _, recursive := range []bool{false, true} {
		t.Run(fmt.Sprint("recursive ", recursive), func(t *testing.T) {
			c := newCluster(t, 0)
			for i := range 35 {
				p := fmt.Sprintf("/d/f%03d", i)
				c.master.addFile(p, "1", int64(i), 1<<20, time.Time{})
				c.master.listing = append(c.master.listing, c.master.files[p])
			}
			c.master.cutAfter = 2
			cl := c.dial(t)
			var got []string
			for e, err := range cl.List(t.Context(), "/d", ListOptions{Recursive: recursive, WithTickets: true}) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Ticket == nil || e.Ticket.FileID != e.FileID {
					t.Error("no ticket", e.Path)
				}
				got = append(got, e.Path)
			}
			if len(got) != 35 || !slices.IsSorted(got) || len(slices.Compact(got)) != 35 {
				t.Errorf("%d: %v", len(got), got)
			}
			// A reader that stops early leaves nothing behind (goleak).
			for _, err := range cl.List(t.Context(), "/d", ListOptions{}) {
				if err != nil {
					t.Error(err)
				}
				break
			}
		})
	}
}

func TestListOfNothing(t *testing.T) {
	c := newCluster(t, 0)
	for e, err := range c.dial(t).List(t.Context(), "/", ListOptions{}) {
		t.Error(e, err)
	}
}

func TestWatchJob(t *testing.T) {
	c := newCluster(t, 0)
	c.master.jobs = []*api.Job{
		{Id: "j", State: api.JobState_JOB_STATE_PLANNING, StartedMs: 1},
		{Id: "j", State: api.JobState_JOB_STATE_RUNNING, StartedMs: 1},
		{Id: "j", State: api.JobState_JOB_STATE_SUCCEEDED, StartedMs: 1, FinishedMs: 2},
	}
	var states []string
	for j, err := range c.dial(t).WatchJob(t.Context(), "j") {
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, j.State)
	}
	if diff := cmp.Diff([]string{JobPlanning, JobRunning, JobSucceeded}, states); diff != "" {
		t.Error(diff)
	}
	for _, err := range c.dial(t).WatchJob(t.Context(), "none") {
		if !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
	}
}

func TestCountersAreReported(t *testing.T) {
	c := newCluster(t, 0)
	cl := c.dial(t)
	reported := func(copies, passed int64) bool {
		c.master.mu.Lock()
		defer c.master.mu.Unlock()
		got := c.master.counters[cl.id]
		return got.GetOpensCopy() == copies && got.GetOpensPassthrough() == passed
	}
	cl.CountOpen(false)
	cl.CountOpen(false)
	for !reported(2, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	cl.CountOpen(true)
	if err := cl.Close(); err != nil || !reported(2, 1) {
		t.Error("Close must report the last counters", err)
	}
	if err := cl.Close(); err != nil {
		t.Error(err)
	}
	if _, err := cl.Stat(t.Context(), "/", StatOptions{}); err == nil {
		t.Error("a closed client answers")
	}
}

func TestJSON(t *testing.T) {
	finished := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		v    any
		want string
	}{
		{
			(&Entry{Path: "/a", Size: 3, MTime: finished, CachedBytes: 2}).Info(),
			`{"path":"/a","type":"file","size":3,"mtime":"2026-01-02T03:04:05Z","cached_bytes":2}`,
		},
		{(&Entry{Path: "/d", Dir: true}).Info(), `{"path":"/d","type":"dir","size":0,"mtime":null,"cached_bytes":0}`},
		{
			(&Entry{Path: "/a", Size: 3, Tag: "v", BlockSize: 9}).FileInfo([]BlockLocation{{Index: 1, CachedBytes: 2, Workers: []string{"w"}}}),
			`{"path":"/a","type":"file","size":3,"mtime":null,"cached_bytes":0,"version":"v","file_id":"00000000000000000000000000000000","block_size":9,` +
				`"blocks":[{"index":1,"cached_bytes":2,"workers":["w"]}]}`,
		},
		{
			jobOf(&api.Job{Id: "j", State: api.JobState_JOB_STATE_CANCELED, StartedMs: 1000, FinishedMs: finished.UnixMilli(), Files: &api.JobSums{Listed: 1, AlreadyCached: 1}}),
			`{"id":"j","state":"canceled","paths":[],"files":{"listed":1,"loaded":0,"already_cached":1,"failed":0,"gone":0},` +
				`"bytes":{"listed":0,"loaded":0,"already_cached":0,"failed":0,"gone":0},"started":"1970-01-01T00:00:01Z","finished":"2026-01-02T03:04:05Z","error":""}`,
		},
		{
			statusOf(&api.StatusReply{ClusterId: "c", Leader: "m", Workers: []*api.WorkerInfo{{Id: "w", State: "live", Tiers: []*api.Tier{{Medium: "ssd"}}}}}),
			`{"cluster_id":"c","leader":"m","serving":false,"masters":[],"workers":[{"id":"w","address":"","data_address":"","http_address":"","state":"live",` +
				`"tiers":[{"medium":"ssd","dir":"","capacity_bytes":0,"used_bytes":0,"held_bytes":0,"state":""}]}],"ufs":[],` +
				`"counters":{"bytes_served":0,"ufs_bytes_read":0,"ufs_list_bytes":0,"ufs_requests":{},"page_hits":0,"page_misses":0,"checksum_errors":0,"evicted_bytes":0,"opens_passthrough":0,"opens_copy":0}}`,
		},
	} {
		b, err := json.Marshal(tc.v)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, string(b)); diff != "" {
			t.Errorf("%T: %s", tc.v, diff)
		}
	}
}

func TestMastersAreNotBelievedBlindly(t *testing.T) {
	good := newFakeMaster()
	good.addFile("/x", "1", 5, 1<<20, time.Time{})
	now := time.Now()
	for name, change := range map[string]func(*api.Entry){
		"relative path": func(e *api.Entry) { e.Path = []byte("x") },
		"unclean path":  func(e *api.Entry) { e.Path = []byte("/x/../y") },
		"no type":       func(e *api.Entry) { e.Type = 0 },
		"short ID":      func(e *api.Entry) { e.FileId = e.FileId[1:] },
		"negative size": func(e *api.Entry) { e.Size = -1 },
		"other size":    func(e *api.Entry) { e.Size++ },
		"bad ticket":    func(e *api.Entry) { e.Ticket = []byte("ticket") },
		"other ID":      func(e *api.Entry) { e.FileId = slices.Clone(e.FileId); e.FileId[1] ^= 1 },
	} {
		o := good.files["/x"]
		e := &api.Entry{
			Path: o.Path, Type: o.Type, Size: o.Size, Tag: o.Tag, FileId: o.FileId, BlockSize: o.BlockSize,
			MountId: o.MountId, Ticket: o.Ticket,
		}
		if _, err := entryOf(e, 1, now); err != nil {
			t.Fatal(err)
		}
		change(e)
		if _, err := entryOf(e, 1, now); !errors.Is(err, errs.Internal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if e, err := entryOf(good.files["/x"], 1<<62, now); err != nil || e.ValidUntil.Sub(now) != maxValid {
		t.Error(e, err)
	}
}

func TestConfigValidate(t *testing.T) {
	c := DefaultConfig()
	c.Masters = []string{"x:1"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	bad := Config{IdleHandles: -1}
	err := bad.Validate()
	for _, field := range []string{
		"masters", "call_timeout", "retry_for", "read_timeout", "read_retry_for", "owners",
		"tcp_connections", "unix_connections", "read_parallel", "idle_handles", "entry_cache",
	} {
		if err == nil || !strings.Contains(err.Error(), "client."+field+":") {
			t.Errorf("error does not name %s: %v", field, err)
		}
	}
	if _, err := Dial(t.Context(), bad, nil, nil); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
