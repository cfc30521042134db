package loadjob

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

const testBlock = block.MinBlockSize

func ticket(path string, length int64) *block.Ticket {
	t := &block.Ticket{MountID: 1, Path: strings.TrimPrefix(path, "/"), Tag: "v1", Length: length, BlockSize: testBlock}
	t.FileID = t.Derive()
	return t
}

// listing is a Source over a sorted list of files.
type listing struct {
	files []FileEntry
	err   error // after the last file
}

func (l listing) List(_ context.Context, path, after string) iter.Seq2[FileEntry, error] {
	return func(yield func(FileEntry, error) bool) {
		for _, f := range l.files {
			below := path == "/" || f.Path == path || strings.HasPrefix(f.Path, path+"/")
			if below && f.Path > after && !yield(f, nil) {
				return
			}
		}
		if l.err != nil {
			yield(FileEntry{}, l.err)
		}
	}
}

func planned(t *testing.T, job Job, src Source) []string {
	t.Helper()
	var got []string
	err := Plan(t.Context(), job, src, func(i *Item) error {
		if want := uint64(len(got) + 1); i.Number != want {
			t.Errorf("item %d has number %d", want, i.Number)
		}
		got = append(got, i.Path()+i.Extent().String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPlan(t *testing.T) {
	const b = testBlock
	src := listing{files: []FileEntry{
		{"/a", ticket("/a", 0)},
		{"/b/x", ticket("/b/x", 1)},
		{"/b/y", ticket("/b/y", 2*b+7)},
		{"/c", ticket("/c", b)},
	}}
	tests := []struct {
		name string
		job  Job
		want []string
	}{
		{"all", Job{Paths: []string{"/"}}, []string{"/a[0,0)", "/b/x[0,1)", "/b/y[0,262144)", "/b/y[262144,524288)", "/b/y[524288,524295)", "/c[0,262144)"}},
		{"a file", Job{Paths: []string{"/b/x"}}, []string{"/b/x[0,1)"}},
		{"resumed", Job{Paths: []string{"/"}, Cursor: Cursor{0, "/b/x"}}, []string{"/b/y[0,262144)", "/b/y[262144,524288)", "/b/y[524288,524295)", "/c[0,262144)"}},
		{"resumed in the second path", Job{Paths: []string{"/c", "/b"}, Cursor: Cursor{1, "/b/y"}}, nil},
		{"covered paths are listed once", Job{Paths: []string{"/b/x", "/b", "/c", "/c", "/b/y"}}, []string{"/b/x[0,1)", "/b/y[0,262144)", "/b/y[262144,524288)", "/b/y[524288,524295)", "/c[0,262144)"}},
		{"resumed at the end", Job{Paths: []string{"/"}, Cursor: Cursor{1, ""}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, planned(t, tt.job, src)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPlanErrors(t *testing.T) {
	ok := FileEntry{"/a", ticket("/a", 1)}
	boom := errors.New("boom")
	tests := []struct {
		name string
		src  listing
		emit error
		want error
	}{
		{"listing", listing{files: []FileEntry{ok}, err: errs.E(errs.NotFound, "list", "/q", nil)}, nil, errs.NotFound},
		{"emit", listing{files: []FileEntry{ok}}, boom, boom},
		{"order", listing{files: []FileEntry{ok, ok}}, nil, errs.Internal},
		{"no ticket", listing{files: []FileEntry{{"/a", nil}}}, nil, errs.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Plan(t.Context(), Job{Paths: []string{"/"}}, tt.src, func(*Item) error { return tt.emit })
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// lookListing is a listing whose files settle when the clock has passed at.
type lookListing struct {
	listing
	at    time.Time
	looks int
	err   error
}

func (l *lookListing) Look(_ context.Context, path string) (FileEntry, error) {
	l.looks++
	if l.err != nil {
		return FileEntry{}, l.err
	}
	t := ticket(path, 1)
	t.Unsettled = time.Now().Before(l.at)
	return FileEntry{path, t}, nil
}

func TestPlanWaitsForUnsettledFiles(t *testing.T) {
	tests := []struct {
		name      string
		settles   time.Duration
		err       error
		looks     int
		wait      time.Duration
		unsettled bool
	}{
		{"settled when looked at again", 0, nil, 1, 0, false},
		{"settled after a wait", time.Second, nil, 2, settleWait, false},
		{"never settled", time.Hour, nil, settleTries, (settleTries - 1) * settleWait, true},
		{"gone", 0, errs.NotFound, 1, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				e := FileEntry{"/a", ticket("/a", 1)}
				e.Ticket.Unsettled = true
				src := &lookListing{listing: listing{files: []FileEntry{e}}, at: start.Add(tt.settles), err: tt.err}
				var got []*Item
				if err := Plan(t.Context(), Job{Paths: []string{"/"}}, src, func(i *Item) error { got = append(got, i); return nil }); err != nil {
					t.Fatal(err)
				}
				if src.looks != tt.looks || time.Since(start) != tt.wait || len(got) != 1 || got[0].Ticket.Unsettled != tt.unsettled {
					t.Errorf("%d looks in %v, items %+v", src.looks, time.Since(start), got)
				}
			})
		})
	}
}
