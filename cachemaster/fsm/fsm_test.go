package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"millrace/internal/errs"
)

var update = flag.Bool("update", false, "write the golden files")

// samples has one command of each kind.
func samples() []Command {
	return []Command{
		{Bootstrap: &Bootstrap{ClusterID: "01CLUSTER"}},
		{RegisterMaster: &Master{ID: "m1", GRPC: "127.0.0.1:7760", HTTP: "127.0.0.1:7762"}},
		{Key: "k1", AddUFS: &AddUFS{Path: "/", URI: "s3://bucket", BlockSize: 64 << 20, Freshness: FreshTTL, TTLMillis: 60_000}},
		{AddUFS: &AddUFS{
			Path: "/a%b\xff/ä", URI: "file:///d", Options: map[string]string{"ttl": "5s"},
			BlockSize: 1 << 20, Freshness: FreshTTL, TTLMillis: 5000,
		}},
		{Key: "k2", RemoveUFS: &RemoveUFS{Path: "/a%b\xff/ä"}},
		{RegisterWorker: &RegisterWorker{Worker: Worker{
			ID: "w1", Addresses: Addresses{GRPC: "h:1", Data: "h:2", HTTP: "h:3", UnixSocket: "/run/w", BootID: "b"},
			CapacityBytes: 1 << 30, SmallestDirBytes: 1 << 29,
		}}},
		{RegisterWorker: &RegisterWorker{Worker: Worker{ID: "w2", CapacityBytes: 1 << 30, SmallestDirBytes: 1 << 28}}},
		{DrainWorker: &DrainWorker{ID: "w2", Draining: true}},
		{RegisterWorker: &RegisterWorker{Worker: Worker{ID: "w3"}, WholeFileLimit: 1 << 20}},
		{ForgetWorker: &ForgetWorker{ID: "w3"}},
		{Key: "k3", SubmitJob: &SubmitJob{ID: "01JOB", Paths: []Path{"/a", "/b\x80"}, StartedMillis: 1700000000000}},
		{ProgressJob: &ProgressJob{
			ID: "01JOB", State: JobRunning, Cursor: Cursor{PathIndex: 1, After: "/b\x80/c"},
			Files: Sums{Listed: 5, Loaded: 2, AlreadyCached: 1, Failed: 1, Gone: 1}, Bytes: Sums{Listed: 50, Loaded: 50},
			Error: "/a/x: timed out",
		}},
		{ProgressJob: &ProgressJob{ID: "01JOB", State: JobSucceeded, Cursor: Cursor{PathIndex: 2}, FinishedMillis: 1700000001000}},
		{RemoveMaster: &RemoveMaster{ID: "m2"}},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: (-want +got)\n%s", name, d)
	}
}

func TestCommandGolden(t *testing.T) {
	t.Parallel()
	var lines bytes.Buffer
	for _, c := range samples() {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(b)
		lines.WriteByte('\n')
		back, err := DecodeCommand(b)
		if err != nil {
			t.Fatal(err)
		}
		c.Version = CommandVersion
		if d := cmp.Diff(c, back); d != "" {
			t.Errorf("decoded: (-want +got)\n%s", d)
		}
	}
	golden(t, "commands.json", lines.Bytes())
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		``, `{}`, `{"v":1}`, `{"v":2,"bootstrap":{"cluster_id":"x"}}`,
		`{"v":1,"bootstrap":{"cluster_id":"x"},"remove_ufs":{"path":"/"}}`,
		`{"v":1,"bootstrap":{"cluster_id":"x","more":1}}`,
		`{"v":1,"bootstrap":{"cluster_id":"x"}} {}`,
		`{"v":1,"remove_ufs":{"path":"/%zz"}}`,
		`{"v":1,"remove_ufs":{"path":"/%f"}}`,
		`{"v":1,"key":"` + strings.Repeat("k", maxKeyLength+1) + `","remove_ufs":{"path":"/"}}`,
	} {
		if _, err := DecodeCommand([]byte(s)); err == nil {
			t.Errorf("%s was accepted", s)
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, c := range samples() {
		b, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeCommand(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if d := cmp.Diff(c, back, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("decoded again: (-want +got)\n%s", d)
		}
	})
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // some tests close it before
	return s
}

func entries(t *testing.T, first uint64, commands ...Command) []*raft.Log {
	t.Helper()
	var logs []*raft.Log
	for i, c := range commands {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, &raft.Log{Index: first + uint64(i), Term: 1, Type: raft.LogCommand, Data: b})
	}
	return logs
}

func mustApply(t *testing.T, s *Store, logs ...*raft.Log) {
	t.Helper()
	for i, a := range s.ApplyBatch(logs) {
		if r, ok := a.(Result); !ok || r.Err != nil {
			t.Fatalf("entry %d: %v", logs[i].Index, a)
		}
	}
}

func same(t *testing.T, what string, want, got *State) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

// TestStateGolden holds the state that the sample commands make.
func TestStateGolden(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	mustApply(t, s, entries(t, 3, samples()...)...)
	b, err := json.MarshalIndent(s.State(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "state.json", append(b, '\n'))
}

// TestReplay applies the log again, in other batches, in the same process and
// after the file was opened again.
func TestReplay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	logs := entries(t, 1, samples()...)
	mustApply(t, s, logs...)
	want := s.State()
	mustApply(t, s, logs...)
	same(t, "replayed", want, s.State())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	same(t, "opened again", want, s.State())
	for _, l := range logs {
		mustApply(t, s, l)
	}
	same(t, "replayed one by one", want, s.State())

	// A crash between two batches: the rest of the log follows.
	other := open(t, filepath.Join(t.TempDir(), "s.db"))
	mustApply(t, other, logs[:4]...)
	mustApply(t, other, logs[2:]...)
	same(t, "overlapping batches", want, other.State())
}

func TestConfigurationEntries(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	mustApply(t, s, &raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("not a command")})
	if s.State().Index != 1 {
		t.Errorf("index %d", s.State().Index)
	}
}

// TestUnreadableEntry stops the machine where it is.
func TestUnreadableEntry(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	mustApply(t, s, entries(t, 1, samples()[0])...)
	want := s.State()
	bad := &raft.Log{Index: 3, Term: 1, Type: raft.LogCommand, Data: []byte(`{"v":99}`)}
	answers := s.ApplyBatch(append(entries(t, 2, samples()[2]), bad))
	for _, a := range answers {
		if r, ok := a.(Result); !ok || errs.KindOf(r.Err) != errs.Unavailable { // so that another master is asked
			t.Errorf("answer %v", a)
		}
	}
	select {
	case <-s.Failed():
	default:
		t.Error("the machine did not stop")
	}
	same(t, "after the failure", want, s.State())
	if r, ok := s.Apply(entries(t, 4, samples()[2])[0]).(Result); !ok || r.Err == nil {
		t.Error("a machine that stopped applied an entry")
	}
}

// sink is a snapshot in memory.
type sink struct {
	bytes.Buffer
	canceled bool
}

func (s *sink) Close() error  { return nil }
func (s *sink) ID() string    { return "s" }
func (s *sink) Cancel() error { s.canceled = true; return nil }

func TestSnapshotRestore(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	logs := entries(t, 1, samples()...)
	mustApply(t, s, logs[:5]...)
	want := s.State()
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, logs[5:]...) // what comes later is not in it
	var out sink
	if err := snap.Persist(&out); err != nil {
		t.Fatal(err)
	}
	snap.Release()

	path := filepath.Join(t.TempDir(), "s.db")
	other := open(t, path)
	mustApply(t, other, entries(t, 1, Command{Bootstrap: &Bootstrap{ClusterID: "another"}})...)
	if err := other.Restore(io.NopCloser(bytes.NewReader(out.Bytes()))); err != nil {
		t.Fatal(err)
	}
	same(t, "restored", want, other.State())
	mustApply(t, other, logs...)
	same(t, "restored, and the log behind it", s.State(), other.State())
	final := other.State()

	if err := other.Restore(io.NopCloser(strings.NewReader("no database"))); err == nil {
		t.Error("a broken snapshot was restored")
	}
	same(t, "after a broken snapshot", final, other.State())
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, "restored and opened again", final, open(t, path).State())
}

// TestDeterminism applies random commands to two machines in other batches,
// with a crash of one of them, and compares.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := 0
	rapid.Check(t, func(r *rapid.T) {
		run++
		commands := rapid.SliceOfN(rapid.Custom(randomCommand), 1, 12).Draw(r, "commands")
		var logs []*raft.Log
		for i, c := range commands {
			b, err := c.Encode()
			if err != nil {
				r.Fatal(err)
			}
			logs = append(logs, &raft.Log{Index: uint64(i + 1), Term: 1, Type: raft.LogCommand, Data: b})
		}
		path := filepath.Join(dir, fmt.Sprint(run))
		a, err := Open(path+"a", nil)
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = a.Close() }()
		a.db.NoSync = true // no crash of the machine is tested here
		all := a.ApplyBatch(logs)
		b, err := Open(path+"b", nil)
		if err != nil {
			r.Fatal(err)
		}
		b.db.NoSync = true
		cut := rapid.IntRange(0, len(logs)).Draw(r, "cut")
		var parts []any
		for _, l := range logs[:cut] {
			parts = append(parts, b.Apply(l))
		}
		if err := b.Close(); err != nil {
			r.Fatal(err)
		}
		if b, err = Open(path+"b", nil); err != nil {
			r.Fatal(err)
		}
		b.db.NoSync = true
		defer func() { _ = b.Close() }()
		for _, l := range logs[cut:] {
			parts = append(parts, b.Apply(l))
		}
		if d := cmp.Diff(a.State(), b.State(), cmpopts.EquateEmpty()); d != "" {
			r.Errorf("states: %s", d)
		}
		byText := cmp.Comparer(func(a, b error) bool { return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error()) })
		if d := cmp.Diff(all, parts, byText, cmpopts.EquateEmpty()); d != "" {
			r.Errorf("answers: %s", d)
		}
	})
}

func randomCommand(r *rapid.T) Command {
	path := Path(rapid.SampledFrom([]string{"/", "/a", "/a/b", "/c"}).Draw(r, "path"))
	id := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(r, "id")
	key := rapid.SampledFrom([]string{"", "", "k1", "k2"}).Draw(r, "key")
	return rapid.SampledFrom([]Command{
		{Bootstrap: &Bootstrap{ClusterID: id}},
		{Key: key, AddUFS: &AddUFS{Path: path, URI: "u" + id, Freshness: FreshNever, BlockSize: 1}},
		{Key: key, RemoveUFS: &RemoveUFS{Path: path}},
		{RegisterWorker: &RegisterWorker{Worker: Worker{ID: id, CapacityBytes: int64(len(path)), SmallestDirBytes: int64(len(path)) * 8}}},
		{DrainWorker: &DrainWorker{ID: id, Draining: len(path) > 1}},
		{ForgetWorker: &ForgetWorker{ID: id}},
		{Key: key, SubmitJob: &SubmitJob{ID: id, Paths: []Path{path}}},
		{ProgressJob: &ProgressJob{ID: id, State: JobFailed, FinishedMillis: int64(len(path) - 1)}},
	}).Draw(r, "command")
}

func TestIdempotencyKeys(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	submit := func(index uint64, key, id string) Result {
		t.Helper()
		r, ok := s.Apply(entries(t, index, Command{Key: key, SubmitJob: &SubmitJob{ID: id, Paths: []Path{"/"}}})[0]).(Result)
		if !ok || r.Err != nil {
			t.Fatal(r.Err)
		}
		// It ends at once, so that the bound on open jobs is not met.
		s.Apply(entries(t, index+1, Command{ProgressJob: &ProgressJob{ID: id, State: JobSucceeded, FinishedMillis: 1}})[0])
		return r
	}
	if a, b := submit(1, "k", "j1"), submit(3, "k", "j2"); a.JobID != "j1" || b.JobID != "j1" {
		t.Errorf("answers %v and %v", a, b)
	}
	var logs []*raft.Log
	for i := range uint64(maxKeys) {
		logs = append(logs, entries(t, 5+i, Command{Key: fmt.Sprint("m", i), RemoveUFS: &RemoveUFS{Path: "/"}})...)
	}
	for _, a := range s.ApplyBatch(logs) {
		if r, ok := a.(Result); !ok || !errors.Is(r.Err, errs.NotFound) {
			t.Fatalf("answer %v", a)
		}
	}
	if r := submit(9000, "k", "j3"); r.JobID != "j1" {
		t.Errorf("failures took the place of a key: %v", r)
	}
	logs = nil
	for i := range uint64(maxKeys) {
		logs = append(logs, entries(t, 10_000+i, Command{Key: fmt.Sprint("n", i), SubmitJob: &SubmitJob{ID: "j1", Paths: []Path{"/"}}})...)
	}
	s.ApplyBatch(logs)
	if r := submit(20_000, "k", "j4"); r.JobID != "j4" {
		t.Errorf("the oldest key is remembered still: %v", r)
	}
}

func TestJobHistory(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	var logs []*raft.Log
	index := uint64(0)
	add := func(c Command) {
		index++
		logs = append(logs, entries(t, index, c)...)
	}
	add(Command{SubmitJob: &SubmitJob{ID: "000-open", Paths: []Path{"/"}}})
	for i := range FinishedHistory + 5 {
		id := fmt.Sprintf("%03d", i)
		add(Command{SubmitJob: &SubmitJob{ID: id, Paths: []Path{"/"}}})
		add(Command{ProgressJob: &ProgressJob{ID: id, State: JobCanceled, FinishedMillis: 1}})
	}
	mustApply(t, s, logs...)
	ids := slices.Sorted(maps.Keys(s.State().Jobs))
	if len(ids) != FinishedHistory+1 || ids[0] != "000-open" || ids[1] != "005" {
		t.Errorf("%d jobs are kept: %v", len(ids), ids)
	}
	r, ok := s.Apply(entries(t, index+1, Command{ProgressJob: &ProgressJob{ID: ids[1], State: JobRunning}})[0]).(Result)
	if !ok || !errors.Is(r.Err, errs.Stale) {
		t.Errorf("a job that has ended was moved on: %v", r)
	}
}

func TestPathText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		p := Path(rapid.SliceOf(rapid.Byte()).Draw(r, "path"))
		b, err := json.Marshal(p)
		if err != nil {
			r.Fatal(err)
		}
		var back Path
		if err := json.Unmarshal(b, &back); err != nil {
			r.Fatal(err)
		}
		if back != p {
			r.Errorf("%q became %q through %s", p, back, b)
		}
	})
}

// A file of a newer release is refused and left as it is, also when it comes
// as a snapshot.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	newer := filepath.Join(t.TempDir(), "newer")
	db, err := openFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(tableMeta)).Put([]byte(metaKey), []byte(`{"format":2,"more":true}`))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if !errors.Is(err, errs.Invalid) {
			t.Fatalf("got %v", err)
		}
		for _, part := range []string{"format 2", "reads format 1", "use the release that wrote it"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	}
	_, err = Open(newer, nil)
	check(err)
	if err != nil && !strings.Contains(err.Error(), newer) {
		t.Errorf("%v does not name the file", err)
	}
	after, err := os.ReadFile(newer)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed (%v)", err)
	}

	s := open(t, filepath.Join(t.TempDir(), "state"))
	state := s.State()
	check(s.Restore(io.NopCloser(bytes.NewReader(before))))
	if s.State() != state {
		t.Error("the refused snapshot changed the state")
	}
}
