package fsm

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// FuzzLoad: whatever the records of a state machine's file hold, its own or a
// snapshot's, they are read or refused.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"format":1,"index":5,"term":1,"cluster_id":"c"}`), []byte(`{"id":1,"path":"/","uri":"s3://b"}`),
		[]byte(`{"id":"w"}`), []byte(`{"id":"j","state":"running","cursor":{"path_index":-1,"after":"/%2"}}`))
	f.Add([]byte(`{"format":2}`), []byte(`null`), []byte(`[]`), []byte(``))
	db, err := openFile(filepath.Join(f.TempDir(), "state"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := db.Close(); err != nil {
			f.Error(err)
		}
	})
	db.NoSync = true
	f.Fuzz(func(t *testing.T, meta, mount, worker, job []byte) {
		err := db.Update(func(tx *bbolt.Tx) error {
			for table, b := range map[string][]byte{tableMeta: meta, tableMounts: mount, tableWorkers: worker, tableJobs: job} {
				if err := tx.Bucket([]byte(table)).Put([]byte(metaKey), b); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := load(db); err == nil && (len(st.Mounts) != 1 || len(st.Workers) != 1 || len(st.Jobs) != 1) {
			t.Errorf("%d mounts, %d workers, %d jobs were read, want one of each", len(st.Mounts), len(st.Workers), len(st.Jobs))
		}
	})
}

// FuzzPath: a path goes through its text unchanged, and a text that is taken
// says the same again.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a b", "/%zz", "/%2f", "/\xff\x00", "%"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := Path(b).MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Path
		if err := back.UnmarshalText(text); err != nil || back != Path(b) {
			t.Fatalf("%q became %q: %v", b, back, err)
		}
		var taken Path
		if taken.UnmarshalText(b) != nil {
			return
		}
		again, err := taken.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var second Path
		if err := second.UnmarshalText(again); err != nil || cmp.Diff(taken, second) != "" {
			t.Fatalf("%q, then %q: %v", taken, second, err)
		}
	})
}
