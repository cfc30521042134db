package rig

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCountRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	if r, err := CountRequests(path); r != (Requests{}) || err != nil {
		t.Errorf("without a log: %+v, %v", r, err)
	}
	log := "- b [t] 127.0.0.1 k ID s3_GetObject a.bin /b/a.bin 200 - 0\n" +
		"- b [t] 127.0.0.1 k ID s3_GetObject b.bin /b/b.bin 206 - 0\n" +
		"- b [t] 127.0.0.1 k ID s3_HeadObject b.bin /b/b.bin 200 - 0\n" +
		"- b [t] 127.0.0.1 k ID s3_ListObjectsV2 - /b 200 - 0\n" +
		"- - [t] 127.0.0.1 k ID - - / 400 - 0\n"
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := CountRequests(path)
	if want := (Requests{Gets: 2, Heads: 1, Others: 1}); r != want || err != nil {
		t.Errorf("%+v, %v, want %+v", r, err, want)
	}
}
