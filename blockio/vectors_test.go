package blockio

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
	"millrace/internal/errs"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectors is testdata/vectors.json: for each encoding the fields and the bytes.
type vectors struct {
	ClientHellos []clientHelloVector `json:"client_hellos"`
	ServerHellos []serverHelloVector `json:"server_hellos"`
	Frames       []frameVector       `json:"frames"`
	Refused      []refusedVector     `json:"refused_headers"`
}

type clientHelloVector struct {
	Name     string `json:"name"`
	Least    uint16 `json:"least_version"`
	Most     uint16 `json:"most_version"`
	Features uint64 `json:"features"`
	BootID   string `json:"boot_id"`
	WorkerID string `json:"worker_id"`
	Token    []byte `json:"token_base64"`
	Hex      string `json:"hex"`
}

type serverHelloVector struct {
	Name        string `json:"name"`
	Version     uint16 `json:"version"`
	Outcome     int    `json:"outcome"`
	Features    uint64 `json:"features"`
	MaxRequests uint32 `json:"max_requests"`
	MaxHandles  uint32 `json:"max_handles"`
	MaxRead     uint32 `json:"max_read"`
	Kind        uint16 `json:"kind"`
	WorkerID    string `json:"worker_id"`
	BootID      string `json:"boot_id"`
	Text        string `json:"text"`
	Hex         string `json:"hex"`
}

type frameVector struct {
	Name   string       `json:"name"`
	Header headerVector `json:"header"`
	Read   *readVector  `json:"read,omitempty"`   // of READ and OPEN_READ
	Mark   uint64       `json:"mark,omitempty"`   // of READ in place
	Ranges []readVector `json:"ranges,omitempty"` // of READV
	End    *endVector   `json:"end,omitempty"`
	// Descriptor is the DATA that answers FD, without the descriptor itself.
	Descriptor *descriptorVector `json:"descriptor,omitempty"`
	Touches    []touchVector     `json:"touches,omitempty"`
	Recalls    *recallsVector    `json:"recalls,omitempty"`     // the DATA that answers RECALLS
	Bytes      string            `json:"payload_hex,omitempty"` // the ticket of OPEN and OPEN_READ, and DATA
	Hex        string            `json:"hex"`
}

type headerVector struct {
	Length         uint32 `json:"length"`
	Op             uint8  `json:"op"`
	Priority       uint8  `json:"priority"`
	Shard          uint16 `json:"shard"`
	RequestID      uint64 `json:"request_id"`
	Handle         uint32 `json:"handle"`
	Block          uint32 `json:"block"`
	Flags          uint32 `json:"flags"`
	TimeoutMS      uint32 `json:"timeout_ms"`
	Generation     uint64 `json:"generation"`
	PlacementEpoch uint64 `json:"placement_epoch"`
	TraceID        uint64 `json:"trace_id"`
}

type readVector struct {
	Offset uint64 `json:"offset"`
	Length uint32 `json:"length"`
}

type descriptorVector struct {
	Base   uint64 `json:"base"`
	Length uint64 `json:"length"`
	Mark   uint64 `json:"mark,omitempty"` // in place
}

type touchVector struct {
	FileID string `json:"file_id"`
	Count  uint32 `json:"count"`
}

type recallsVector struct {
	Position uint64   `json:"position"`
	IdleMS   uint32   `json:"idle_ms"`
	Files    []string `json:"files"`
}

type endVector struct {
	Outcome int         `json:"outcome"`
	Kind    uint16      `json:"kind"`
	Text    string      `json:"text"`
	CRCs    [][2]uint32 `json:"page_crcs"`
}

type refusedVector struct {
	Name string `json:"name"`
	Hex  string `json:"hex"`
}

func (h headerVector) header() header {
	return header{
		Length: h.Length, Op: op(h.Op), Priority: Priority(h.Priority), Shard: h.Shard, RequestID: h.RequestID,
		Handle: h.Handle, Block: h.Block, Flags: h.Flags, TimeoutMS: h.TimeoutMS, Generation: h.Generation,
		PlacementEpoch: h.PlacementEpoch, TraceID: h.TraceID,
	}
}

func (v frameVector) encode(t *testing.T) []byte {
	t.Helper()
	h := v.Header.header()
	b := appendHeader(nil, &h)
	if v.Read != nil {
		b = appendReadPayload(b, readPayload(*v.Read))
	}
	if v.Mark != 0 {
		b = binary.LittleEndian.AppendUint64(b, v.Mark)
	}
	for _, r := range v.Ranges {
		b = appendReadPayload(b, readPayload(r))
	}
	if v.End != nil {
		e := v.End.payload()
		b = appendEnd(b, &e)
	}
	if v.Descriptor != nil {
		b = appendDescriptor(b, descriptorPayload(*v.Descriptor))
	}
	for _, touch := range v.touches(t) {
		b = appendTouch(b, &touch)
	}
	if v.Recalls != nil {
		recalls := v.Recalls.recalls(t)
		b = appendRecalls(b, &recalls)
	}
	return append(b, unhex(t, v.Bytes)...)
}

func (v *recallsVector) recalls(t *testing.T) Recalls {
	t.Helper()
	r := Recalls{Position: v.Position, Idle: time.Duration(v.IdleMS) * time.Millisecond}
	if v.IdleMS == anyTimeMS {
		r.Idle = AnyTime
	}
	for _, text := range v.Files {
		id, err := block.ParseFileID(text)
		if err != nil {
			t.Fatal(err)
		}
		r.Files = append(r.Files, id)
	}
	return r
}

func (v frameVector) touches(t *testing.T) []Touch {
	t.Helper()
	touches := make([]Touch, 0, len(v.Touches))
	for _, touch := range v.Touches {
		id, err := block.ParseFileID(touch.FileID)
		if err != nil {
			t.Fatal(err)
		}
		touches = append(touches, Touch{FileID: id, Count: touch.Count})
	}
	return touches
}

func (v *endVector) payload() endPayload {
	e := endPayload{Failed: v.Outcome == 1, Kind: errs.Kind(v.Kind), Text: v.Text}
	for _, c := range v.CRCs {
		e.CRCs = append(e.CRCs, pageCRC{Page: c[0], CRC: c[1]})
	}
	return e
}

func (v clientHelloVector) hello() clientHello {
	return clientHello{Least: v.Least, Most: v.Most, Features: v.Features, BootID: v.BootID, WorkerID: v.WorkerID, Token: v.Token}
}

func (v serverHelloVector) hello() serverHello {
	h := serverHello{Failed: v.Outcome == 1, Kind: errs.Kind(v.Kind), Text: v.Text}
	h.Version, h.Features, h.MaxRequests, h.MaxHandles, h.MaxRead = v.Version, v.Features, v.MaxRequests, v.MaxHandles, v.MaxRead
	h.WorkerID, h.BootID = block.WorkerID(v.WorkerID), v.BootID
	return h
}

func loadVectors(t testing.TB) vectors {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVectors(t *testing.T) {
	v := loadVectors(t)
	if *update {
		writeVectors(t, v)
	}
	for _, c := range v.ClientHellos {
		h := c.hello()
		if got := hex.EncodeToString(encodeClientHello(&h)); got != c.Hex {
			t.Errorf("%s: encoded as %s, want %s", c.Name, got, c.Hex)
		}
		got, err := readClientHello(bytes.NewReader(unhex(t, c.Hex)))
		if err != nil || !cmp.Equal(got, h, cmp.Transformer("text", func(b []byte) string { return string(b) })) {
			t.Errorf("%s: decoded as %+v, %v", c.Name, got, err)
		}
	}
	for _, c := range v.ServerHellos {
		h := c.hello()
		if got := hex.EncodeToString(encodeServerHello(&h)); got != c.Hex {
			t.Errorf("%s: encoded as %s, want %s", c.Name, got, c.Hex)
		}
		got, err := readServerHello(bytes.NewReader(unhex(t, c.Hex)))
		if err != nil || got != h {
			t.Errorf("%s: decoded as %+v, %v", c.Name, got, err)
		}
	}
	for _, c := range v.Frames {
		if got := hex.EncodeToString(c.encode(t)); got != c.Hex {
			t.Errorf("%s: encoded as %s, want %s", c.Name, got, c.Hex)
		}
		checkFrame(t, c)
	}
	for _, c := range v.Refused {
		if h, err := parseHeader(unhex(t, c.Hex)); err == nil {
			t.Errorf("%s: decoded as %+v", c.Name, h)
		}
	}
}

// checkFrame decodes a frame's bytes and compares with its fields.
func checkFrame(t *testing.T, c frameVector) {
	t.Helper()
	b := unhex(t, c.Hex)
	h, err := parseHeader(b)
	if err != nil || h != c.Header.header() || int(h.Length) != len(b)-headerSize {
		t.Errorf("%s: decoded as %+v, %v", c.Name, h, err)
	}
	b = b[headerSize:]
	switch {
	case c.Read != nil:
		if got := parseReadPayload(b); got != readPayload(*c.Read) {
			t.Errorf("%s: decoded as %+v", c.Name, got)
		}
		if h.Op == opOpenRead {
			b = b[readPayloadSize:]
		}
		if mark, rest, err := cutMark(b); c.Mark != 0 && (err != nil || mark != c.Mark || len(rest) != readPayloadSize) {
			t.Errorf("%s: mark %d, %v", c.Name, mark, err)
		}
	case c.Ranges != nil:
		want := make([]block.Extent, 0, len(c.Ranges))
		for _, r := range c.Ranges {
			want = append(want, block.Extent{Offset: int64(r.Offset), Length: int64(r.Length)})
		}
		got, err := appendExtents(nil, b, block.Geometry{Length: 1 << 40, BlockSize: block.DefaultBlockSize}, noBlock)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", c.Name, err, diff)
		}
	case c.Descriptor != nil:
		if base, err := parseDescriptor(b, int64(c.Descriptor.Length)); err != nil || base != int64(c.Descriptor.Base) {
			t.Errorf("%s: decoded as %d, %v", c.Name, base, err)
		}
		if mark, rest, err := cutMark(b); c.Descriptor.Mark != 0 && (err != nil || mark != c.Descriptor.Mark || len(rest) != descriptorSize) {
			t.Errorf("%s: mark %d, %v", c.Name, mark, err)
		}
	case c.Touches != nil:
		got, err := parseTouches(b)
		if diff := cmp.Diff(c.touches(t), got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", c.Name, err, diff)
		}
	case c.Recalls != nil:
		got, err := parseRecalls(b)
		if diff := cmp.Diff(c.Recalls.recalls(t), got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", c.Name, err, diff)
		}
	case c.End != nil:
		got, err := parseEnd(b, nil)
		if diff := cmp.Diff(c.End.payload(), got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", c.Name, err, diff)
		}
	}
	if h.Op == opOpen || h.Op == opOpenRead {
		if _, err := block.ParseTicket(b); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

// writeVectors computes the bytes of all vectors from their fields.
func writeVectors(t *testing.T, v vectors) {
	t.Helper()
	for i := range v.ClientHellos {
		h := v.ClientHellos[i].hello()
		v.ClientHellos[i].Hex = hex.EncodeToString(encodeClientHello(&h))
	}
	for i := range v.ServerHellos {
		h := v.ServerHellos[i].hello()
		v.ServerHellos[i].Hex = hex.EncodeToString(encodeServerHello(&h))
	}
	for i := range v.Frames {
		f := &v.Frames[i]
		f.Header.Length = uint32(len(f.encode(t)) - headerSize)
		f.Hex = hex.EncodeToString(f.encode(t))
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", "vectors.json"), append(b, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}
