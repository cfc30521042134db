package tier

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
)

// vector is one record of testdata/records.json.
type vector struct {
	Name   string `json:"name"`
	Fields record `json:"fields"`
	Frame  string `json:"frame"` // hexadecimal
}

func testRecords() []vector {
	f := testFile("data/träin/0001.tar", `"9b2cf535f27731c974343645a3985328"`, 3*page+5)
	return []vector{
		{Name: "part", Fields: record{
			Type: recordPart, Kind: kindCached, Serial: 7, File: f.ID, MountID: f.MountID,
			Length: f.Length, BlockSize: f.BlockSize, Path: []byte(f.Path), Tag: []byte(f.Tag),
		}},
		{Name: "parity part", Fields: record{
			Type: recordPart, Kind: kindParity, Shard: 5, Serial: 1 << 40, File: f.ID,
			Length: 1, BlockSize: block.PageSize, Path: []byte{}, Tag: []byte{},
		}},
		{Name: "pages", Fields: record{
			Type: recordPages, Kind: kindCached, Flags: flagVisited, Serial: 7, BlockLength: 3*uint32(page) + 5,
			First: 2, Count: 2, CRCs: []uint32{0xdeadbeef, 1},
		}},
		{Name: "dirty pages", Fields: record{
			Type: recordPages, Kind: kindDirty, Serial: 9, Generation: 3, Block: 4, BlockLength: 1,
			Count: 1, CRCs: []uint32{0xffffffff},
		}},
		{Name: "drop pages", Fields: record{Type: recordDropPages, Serial: 7, Block: 2, First: 1, Count: 255}},
		{Name: "drop part", Fields: record{Type: recordDropPart, Serial: 7}},
		{Name: "checkpoint", Fields: record{Type: recordCheckpoint, Segment: 3, Offset: 4096, UnixMS: 1_700_000_000_000}},
		{Name: "clean checkpoint", Fields: record{Type: recordCheckpoint, Flags: flagClean, Segment: 3, Offset: 64}},
		{Name: "end", Fields: record{Type: recordEnd, Records: 12}},
	}
}

// TestRecordVectors compares the encoding with testdata/records.json, which
// other implementations can read. UPDATE=1 writes it anew; a change there is
// a new format.
func TestRecordVectors(t *testing.T) {
	name := filepath.Join("testdata", "records.json")
	vectors := testRecords()
	for i := range vectors {
		vectors[i].Frame = hex.EncodeToString(appendFrame(nil, &vectors[i].Fields))
	}
	got, err := json.MarshalIndent(map[string]any{
		"header":  hex.EncodeToString(header{magic: segmentMagic, seq: 5, boot: [16]byte{1, 2, 3}}.encode()),
		"records": vectors,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(name, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Fatal(diff)
	}
	for _, v := range vectors {
		frame, err := hex.DecodeString(v.Frame)
		if err != nil {
			t.Fatal(err)
		}
		var r record
		if err := decodeRecord(frame[frameHeader:], &r); err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if len(r.CRCs) == 0 {
			r.CRCs = nil
		}
		if diff := cmp.Diff(v.Fields, r); diff != "" {
			t.Fatalf("%s: %s", v.Name, diff)
		}
	}
}

func TestRecordsOfNewerReleases(t *testing.T) {
	frame := appendFrame(nil, &record{Type: recordDropPart, Serial: 1})[frameHeader:]
	var r record
	frame[0] = 99
	if err := decodeRecord(frame, &r); !errors.Is(err, errNewerRecord) {
		t.Fatal(err)
	}
	frame[0] = recordOptional + 5
	if err := decodeRecord(frame, &r); err != nil {
		t.Fatal(err)
	}
	h := header{magic: segmentMagic}.encode()
	h[8] = 2
	copy(h[12:16], []byte{0, 0, 0, 0})
	sum := block.Checksum(h)
	h[12], h[13], h[14], h[15] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	if _, err := decodeHeader(h, segmentMagic); !errors.Is(err, errNewerRecord) {
		t.Fatal(err)
	}
}

// FuzzDecodeRecord: no input makes the decoder panic or take more memory than
// the input is long, and what it accepts is encoded to the same bytes.
func FuzzDecodeRecord(f *testing.F) {
	for _, v := range testRecords() {
		f.Add(appendFrame(nil, &v.Fields)[frameHeader:])
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var r record
		if err := decodeRecord(payload, &r); err != nil || r.Type >= recordOptional {
			return
		}
		if 4*cap(r.CRCs) > 2*len(payload)+64 {
			t.Fatalf("%d checksums from %d bytes", cap(r.CRCs), len(payload))
		}
		if again := appendFrame(nil, &r)[frameHeader:]; !bytes.Equal(again, payload) {
			t.Fatalf("%x became %x", payload, again)
		}
	})
}

// FuzzReadRecords: no file makes the reader panic, fail or read past what it
// says is good.
func FuzzReadRecords(f *testing.F) {
	file := header{magic: segmentMagic, seq: 1}.encode()
	for _, v := range testRecords() {
		file = appendFrame(file, &v.Fields)
	}
	f.Add(file)
	f.Add(append(file, 0, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(file[:len(file)-3])
	f.Fuzz(func(t *testing.T, file []byte) {
		last := int64(headerSize)
		valid, torn, err := readRecords(bytes.NewReader(file), segmentMagic, func(_ *record, end int64) error {
			if end <= last || end > int64(len(file)) {
				t.Fatalf("record ends at %d, after %d, of %d", end, last, len(file))
			}
			last = end
			return nil
		})
		if err != nil && !errors.Is(err, errNewerRecord) {
			t.Fatal(err)
		}
		if valid > int64(len(file)) || valid != 0 && valid != last {
			t.Fatalf("valid %d, last record %d, torn %v", valid, last, torn)
		}
	})
}
