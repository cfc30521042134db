package cachemaster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
)

// bareNamespace is a namespace without a master, with one under-store at "/".
func bareNamespace(t *testing.T, cfg Config, s *memStore, freshness fsm.Freshness) (*namespace, *testClock) {
	t.Helper()
	st := &fsm.State{Index: 1, Mounts: []fsm.Mount{{
		ID: 1, Path: "/", URI: "mem://s", BlockSize: 64 << 20, Freshness: freshness, TTLMillis: 60_000, Changed: 1,
	}}}
	clock := &testClock{}
	n := newNamespace(cfg, clock.Now, func() *fsm.State { return st },
		newStores(registry(map[string]*memStore{"s": s}), nil, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() {
		n.close()
		n.stores.close()
	})
	return n, clock
}

// folders makes files in folders, and returns their paths in the namespace.
func folders(count, files int) (s *memStore, paths [][]string) {
	content := map[string]string{}
	for d := range count {
		var in []string
		for f := range files {
			p := fmt.Sprintf("d%03d/f%05d", d, f)
			content[p] = fmt.Sprint(d, f)
			in = append(in, "/"+p)
		}
		paths = append(paths, in)
	}
	return newMemStore(content), paths
}

// wantAsked compares what the under-store was asked since the last call.
func wantAsked(t *testing.T, what string, s *memStore, heads, pages int) {
	t.Helper()
	h, p := s.requests()
	if h != heads || p != pages {
		t.Errorf("%s: asked for %d heads and %d pages, want %d and %d", what, h, p, heads, pages)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats, s.pages = 0, 0
}

// look stats each path and wants it to be there.
func look(t *testing.T, n *namespace, paths ...string) {
	t.Helper()
	for _, p := range paths {
		f, err := n.stat(t.Context(), p, false)
		if err != nil || f.path != p || f.valid <= 0 || (f.info.Tag == "" && f.info.Size > 0) {
			t.Fatalf("stat %s = %+v, %v", p, f, err)
		}
	}
}

func TestListAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no listing takes longer than its patience
		s, paths := folders(2, 100)
		n, clock := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
		look(t, n, paths[0]...)
		wantAsked(t, "a folder", s, 2, 1)
		look(t, n, paths[0]...)
		if _, err := n.stat(t.Context(), "/d000/none", false); !errors.Is(err, errs.NotFound) {
			t.Errorf("stat of what is not there: %v", err)
		}
		wantAsked(t, "again, and a name that is not there", s, 0, 0)
		look(t, n, paths[1][:2]...)
		wantAsked(t, "two files alone", s, 2, 0)
		clock.advance(61 * time.Second)
		look(t, n, paths[1][:2]...)
		wantAsked(t, "two files alone, later", s, 2, 0)
		look(t, n, paths[0]...)
		wantAsked(t, "the first folder, later", s, 2, 1)

		for _, tc := range []struct {
			name      string
			freshness fsm.Freshness
			change    func(*Config)
			heads     int
			pages     int
		}{
			{"never", fsm.FreshNever, func(*Config) {}, 2, 1},
			{"always", fsm.FreshAlways, func(*Config) {}, 100, 0},
			{"switched off", fsm.FreshTTL, func(c *Config) { c.ListAheadLooks = 0 }, 100, 0},
			{"after five", fsm.FreshTTL, func(c *Config) { c.ListAheadLooks = 5 }, 5, 1},
		} {
			cfg := testConfig()
			tc.change(&cfg)
			s, paths := folders(1, 100)
			n, _ := bareNamespace(t, cfg, s, tc.freshness)
			for _, p := range paths[0] {
				if _, err := n.stat(t.Context(), p, false); err != nil {
					t.Fatal(err)
				}
			}
			wantAsked(t, tc.name, s, tc.heads, tc.pages)
		}
	})
}

// TestListAheadOfWalks has readers walk over 20 folders of 100 files as mounts
// do, who look at each directory on the way.
func TestListAheadOfWalks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no listing takes longer than its patience
		s, paths := folders(20, 100)
		n, _ := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
		const readers = 8
		var wg sync.WaitGroup
		for r := range readers {
			wg.Go(func() {
				for d := range paths {
					for f := r; f < len(paths[d]); f += readers {
						for _, p := range []string{fmt.Sprintf("/d%03d", d), paths[d][f]} {
							if _, err := n.stat(t.Context(), p, false); err != nil {
								t.Error(err)
							}
						}
					}
				}
			})
		}
		wg.Wait()
		// Two looks and one listing for each folder and for the root.
		wantAsked(t, "20 folders of 100", s, 2*21, 21)
	})
}

// TestListAheadOfLongDirectory looks at a directory that is too long.
func TestListAheadOfLongDirectory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // no listing takes longer than its patience
		s, paths := folders(1, 6000)
		n, clock := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
		look(t, n, paths[0][5000:5002]...)
		wantAsked(t, "the first two", s, 2, 0)
		look(t, n, paths[0][5002])
		wantAsked(t, "the third", s, 1, 4)
		look(t, n, paths[0][:4000]...)
		wantAsked(t, "what the listing has", s, 0, 0)
		look(t, n, paths[0][4500:4600]...)
		wantAsked(t, "what it has not", s, 100, 0)
		if _, err := n.stat(t.Context(), "/d000/none", false); !errors.Is(err, errs.NotFound) {
			t.Errorf("stat of what is not there: %v", err)
		}
		wantAsked(t, "what is not there", s, 1, 0)
		entries := 0
		for _, err := range n.children(t.Context(), "/d000") {
			if err != nil {
				t.Fatal(err)
			}
			entries++
		}
		wantAsked(t, "all of it", s, 0, 6)
		look(t, n, paths[0]...)
		wantAsked(t, "once it is known", s, 0, 0)
		if entries != len(paths[0]) {
			t.Errorf("%d entries, want %d", entries, len(paths[0]))
		}
		clock.advance(61 * time.Second)
		look(t, n, paths[0][5000:5010]...)
		wantAsked(t, "later", s, 10, 4)
	})
}

// TestListAheadRefused has rights to look at files, but none to list.
func TestListAheadRefused(t *testing.T) {
	t.Parallel()
	s, paths := folders(1, 100)
	s.failList = errs.E(errs.Permission, "list", "d000", nil)
	n, clock := bareNamespace(t, testConfig(), s, fsm.FreshNever)
	look(t, n, paths[0][:50]...)
	wantAsked(t, "refused", s, 50, 1)
	s.mu.Lock()
	s.failList = nil
	s.mu.Unlock()
	clock.advance(61 * time.Second)
	look(t, n, paths[0]...)
	wantAsked(t, "allowed", s, 2, 1)
}

// TestListAheadIsShared holds a listing while others come, leave, and give up.
func TestListAheadIsShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, paths := folders(1, 100)
		n, _ := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
		look(t, n, paths[0][:2]...)
		wantAsked(t, "the first two", s, 2, 0)
		hold := make(chan struct{})
		s.mu.Lock()
		s.hold = hold
		s.mu.Unlock()
		impatient, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := n.stat(impatient, paths[0][2], false)
			gone <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for _, p := range append([]string{"/d000/none"}, paths[0][3:50]...) {
			wg.Go(func() {
				_, err := n.stat(t.Context(), p, false)
				if none := p == "/d000/none"; (err != nil) != none || (none && !errors.Is(err, errs.NotFound)) {
					t.Errorf("stat %s: %v", p, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("who left: %v", err)
		}
		time.Sleep(listPatience / 2)
		close(hold)
		wg.Wait()
		wantAsked(t, "all others", s, 0, 1)
	})
	synctest.Test(t, func(t *testing.T) {
		s, paths := folders(1, 100)
		n, _ := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
		look(t, n, paths[0][:2]...)
		hold := make(chan struct{})
		s.mu.Lock()
		s.hold = hold
		s.mu.Unlock()
		done := make(chan error, 1)
		go func() {
			_, err := n.stat(t.Context(), paths[0][2], false)
			done <- err
		}()
		time.Sleep(listPatience + time.Millisecond)
		synctest.Wait()
		wantAsked(t, "a listing that hangs", s, 3, 1)
		close(hold)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWalkFillsCache reads a tree that was listed as a load job lists it.
func TestWalkFillsCache(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"a": "1", "b": "22", "b-": "3", "b/c/d": "4", "b/c/e": "5", "b/f": "6", "b/g/h/i": "7", "b0": "8",
	}
	walk := func(n *namespace, p, after string, most int) {
		t.Helper()
		for _, err := range n.files(t.Context(), p, after) {
			if err != nil {
				t.Fatal(err)
			}
			if most--; most == 0 {
				return
			}
		}
	}
	var paths []string
	for p := range files {
		paths = append(paths, "/"+p)
	}
	s := newMemStore(files)
	n, clock := bareNamespace(t, testConfig(), s, fsm.FreshTTL)
	walk(n, "/", "", 0)
	wantAsked(t, "a walk", s, 0, 1)
	look(t, n, append(paths, "/b/c", "/b/g", "/b/g/h")...)
	wantAsked(t, "what it found", s, 0, 0)
	if f, err := n.stat(t.Context(), "/b", false); err != nil || f.info.Size != 2 {
		t.Errorf("what is a file and a directory: %+v, %v", f, err)
	}
	if _, err := n.stat(t.Context(), "/b/none", false); !errors.Is(err, errs.NotFound) {
		t.Errorf("what is not there: %v", err)
	}
	wantAsked(t, "what is not there", s, 1, 0)
	clock.advance(61 * time.Second)
	walk(n, "/b", "/b/c/d", 0)
	look(t, n, "/b/c/e", "/b/f", "/b/g/h/i")
	wantAsked(t, "a part of the tree", s, 0, 1)
	look(t, n, "/b/c/d")
	wantAsked(t, "what was before that part", s, 1, 0)
	clock.advance(61 * time.Second)
	walk(n, "/", "", 4)
	look(t, n, "/a", "/b-", "/b/c/d")
	wantAsked(t, "a walk that ended early", s, 0, 1)

	s = newMemStore(files)
	n, _ = bareNamespace(t, testConfig(), s, fsm.FreshAlways)
	walk(n, "/", "", 0)
	if entries, _ := n.cache.size(); entries != 0 {
		t.Errorf("freshness always: %d entries are kept", entries)
	}

	cfg := testConfig()
	cfg.MetadataCacheBytes = 1 << 20
	s, _ = folders(10, 1000)
	n, _ = bareNamespace(t, cfg, s, fsm.FreshTTL)
	walk(n, "/", "", 0)
	if entries, bytes := n.cache.size(); entries == 0 || bytes > 1<<20/walkShare+10_000 {
		t.Errorf("%d entries of %d bytes are kept", entries, bytes)
	}
}
