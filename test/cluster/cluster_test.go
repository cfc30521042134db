package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"testing"

	"millrace/bench/rig"
	"millrace/client"
)

func content(name string, size int64) []byte {
	b := make([]byte, size)
	rig.NewContent(name, size).ReadAt(b, 0)
	return b
}

// readWhole reads a file of the source through a client and checks every byte.
func readWhole(ctx context.Context, cl *client.Client, name string, size int64) error {
	f, err := cl.Open(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	return checkWhole(f, name, size)
}

// checkWhole reads an open file and checks every byte.
func checkWhole(f *client.File, name string, size int64) error {
	got, err := io.ReadAll(io.NewSectionReader(f, 0, size+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if !bytes.Equal(got, content(path.Base(name), size)) {
		return fmt.Errorf("%s has other bytes than its source", name)
	}
	return nil
}

// TestCluster starts three masters and two workers, reads, and stops them all.
func TestCluster(t *testing.T) {
	c := start(t, 3, 2, nil)
	files := c.source(t, 8, 300<<10)
	cl, err := c.Client(t.Context(), nil)
	must(t, err)
	defer cl.Close()
	for name, size := range files {
		must(t, readWhole(t.Context(), cl, name, size))
	}
	var st struct {
		Leader  string `json:"leader"`
		Masters []struct {
			ID string `json:"id"`
		} `json:"masters"`
	}
	must(t, json.Unmarshal([]byte(c.run(t, "status", "-o", "json")), &st))
	if len(st.Masters) != 3 || st.Leader != c.leader(t).Name {
		t.Errorf("status = %+v", st)
	}
	for _, p := range append(c.Workers(), c.Masters()...) {
		must(t, p.Terminate(patience))
	}
}
