package cacheworker

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"millrace/api"
)

// FuzzLoadMounts: whatever a worker finds in its data directory, it starts
// with a mount table or says that the file is damaged.
func FuzzLoadMounts(f *testing.F) {
	table, err := protojson.Marshal(&api.Mounts{Version: 3, Mounts: []*api.UFSMount{
		{Id: 1, Path: []byte("/"), Uri: "s3://bucket", Options: map[string]string{"region": "x"}, BlockSize: 64 << 20},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table, []byte("[2]"))
	f.Add([]byte(`{"mounts":[null]}`), []byte("null"))
	f.Add([]byte("{"), []byte("[-1]"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, mounts, dropping []byte) {
		for name, b := range map[string][]byte{mountsFile: mounts, droppingFile: dropping} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m := &mountTable{log: slog.New(slog.DiscardHandler), concurrency: 1, recall: func() {}}
		if m.load(dir) != nil {
			return
		}
		for _, spec := range m.table.GetMounts() {
			if !m.known(spec.GetId()) {
				t.Errorf("mount %d of the file is not known", spec.GetId())
			}
		}
		// A newer table takes its place.
		next := &api.Mounts{Version: m.version() + 1, Mounts: m.table.GetMounts()}
		if next.GetVersion() == 0 {
			return
		}
		if err := m.apply(next); err != nil {
			t.Error(err)
		}
		again := &mountTable{log: m.log, concurrency: 1, recall: func() {}}
		if err := again.load(dir); err != nil || !proto.Equal(again.table, next) {
			t.Errorf("what was kept is read back as %v, %v, want %v", again.table, err, next)
		}
	})
}

// FuzzIdentity: an identity that is taken names a worker, and is kept as it
// is.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"worker_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","cluster_id":"c","start_epoch":7}`))
	f.Add([]byte(`{"worker_id":"x"}`))
	f.Add([]byte(`null`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, identityFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := LoadIdentity(dir)
		if err != nil {
			return
		}
		if id.WorkerID == "" {
			t.Fatalf("%q names no worker", b)
		}
		kept := &identity{name: filepath.Join(dir, identityFile)}
		if err := kept.save(id); err != nil {
			t.Fatal(err)
		}
		if again, err := LoadIdentity(dir); err != nil || again != id {
			t.Errorf("%+v is read back as %+v, %v", id, again, err)
		}
	})
}
