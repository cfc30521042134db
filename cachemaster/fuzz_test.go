package cachemaster

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace/api"
	"millrace/block"
	"millrace/cachemaster/blockmap"
	"millrace/cachemaster/fsm"
	"millrace/ufs"
)

// FuzzParseMount: an under-store mount that is taken has a clean path, a
// block size that divides into pages, and a known freshness.
func FuzzParseMount(f *testing.F) {
	f.Add("/", ufs.OptionBlockSize, "64MiB", ufs.OptionTTL, "30s")
	f.Add("/a/../b", ufs.OptionFreshness, "never", "region", "x")
	f.Add("/x", ufs.OptionBlockSize, "1", ufs.OptionTTL, "-5s")
	f.Fuzz(func(t *testing.T, path, k1, v1, k2, v2 string) {
		m, err := parseMount(DefaultConfig(), path, "s3://bucket", map[string]string{k1: v1, k2: v2})
		if err != nil {
			return
		}
		if checkPath(string(m.Path)) != nil || m.TTLMillis < 1 {
			t.Errorf("%+v", m)
		}
		if err := (block.Geometry{BlockSize: m.BlockSize}).Validate(); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
		switch m.Freshness {
		case fsm.FreshTTL, fsm.FreshNever, fsm.FreshAlways:
		default:
			t.Errorf("%+v", m)
		}
	})
}

// FuzzBlockReport: a report that is taken makes no more locations than it
// names, and none more when it comes again.
func FuzzBlockReport(f *testing.F) {
	for _, r := range []*api.ReportBlocksRequest{
		{WorkerId: "w", StartEpoch: 1, Sequence: 1, FullFirst: true, FullLast: true, Cached: []uint64{2, 5}, Gone: []uint64{4}},
		{WorkerId: "w", Sequence: 1 << 63, Cached: []uint64{7, 7, 1}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r api.ReportBlocksRequest
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		report := reportOf(&r)
		m := blockmap.New(time.Now)
		m.Apply("w", report)
		n := m.Len()
		if n > len(r.GetCached()) {
			t.Errorf("%d locations of %d blocks", n, len(r.GetCached()))
		}
		if m.Apply("w", report); m.Len() != n {
			t.Errorf("%d locations, %d when the report came again", n, m.Len())
		}
	})
}
