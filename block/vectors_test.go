package block_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/block"
)

var update = flag.Bool("update", false, "write the test vectors anew")

// The vectors: what testdata/README.md describes. 64-bit numbers are strings,
// since JSON numbers are not exact everywhere; arbitrary bytes are hexadecimal.

type fileIDVector struct {
	Name      string `json:"name"`
	MountID   uint64 `json:"mount_id,string"`
	Path      string `json:"path_hex"`
	Tag       string `json:"tag_hex"`
	Length    int64  `json:"length,string"`
	BlockSize int64  `json:"block_size,string"`
	FileID    string `json:"file_id"`
}

type mintedVector struct {
	Random string `json:"random_hex"`
	FileID string `json:"file_id"`
}

type ticketVector struct {
	Name      string `json:"name"`
	MountID   uint64 `json:"mount_id,string"`
	Path      string `json:"path_hex"`
	Tag       string `json:"tag_hex"`
	Length    int64  `json:"length,string"`
	BlockSize int64  `json:"block_size,string"`
	FileID    string `json:"file_id"`
	ExpiryMS  int64  `json:"expiry_unix_ms,string"`
	Unsettled bool   `json:"unsettled"`
	KeyID     uint32 `json:"key_id"`
	Identity  string `json:"identity_hex"`
	Signature string `json:"signature_hex"`
	Unsigned  string `json:"unsigned_hex"`
	Encoded   string `json:"encoded_hex"`
}

type badTicketVector struct {
	Name    string `json:"name"`
	Encoded string `json:"encoded_hex"`
}

type extentVector struct {
	Offset int64 `json:"offset,string"`
	Length int64 `json:"length,string"`
}

type rangeVector struct {
	Extent     extentVector `json:"extent"`
	FirstPage  int64        `json:"first_page,string"`
	EndPage    int64        `json:"end_page,string"`
	FirstBlock int64        `json:"first_block,string"`
	EndBlock   int64        `json:"end_block,string"`
}

type geometryVector struct {
	Length    int64         `json:"length,string"`
	BlockSize int64         `json:"block_size,string"`
	Blocks    int64         `json:"blocks,string"`
	Pages     int64         `json:"pages,string"`
	LastBlock extentVector  `json:"last_block"`
	LastPage  extentVector  `json:"last_page"`
	Ranges    []rangeVector `json:"ranges"`
}

type workerVector struct {
	ID     string `json:"id"`
	Weight uint64 `json:"weight,string"`
}

type ownersVector struct {
	FileID string           `json:"file_id"`
	Index  uint32           `json:"index"`
	Length int64            `json:"length,string"`
	Owners []block.WorkerID `json:"owners"`
}

type placementVector struct {
	Name           string         `json:"name"`
	WholeFileLimit int64          `json:"whole_file_limit,string"`
	Workers        []workerVector `json:"workers"`
	Keys           []ownersVector `json:"keys"`
}

type checksumVector struct {
	Name   string `json:"name"`
	Bytes  string `json:"bytes_hex"`
	CRC32C string `json:"crc32c"`
}

// checkVectors compares v with a file of testdata, or writes it there.
func checkVectors(t *testing.T, name string, v any) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s (-file +computed); machines of two releases would disagree:\n%s", file, d)
	}
}

func TestLocationVectors(t *testing.T) {
	type vector struct {
		FileID string `json:"file_id"`
		Index  uint32 `json:"index"`
		Hash   uint64 `json:"hash,string"`
	}
	var vectors []vector
	for i, index := range []uint32{0, 0, 1, 2, 1<<32 - 1} {
		k := block.Key{Index: index}
		if i > 0 {
			k.File = block.DeriveFileID(1, "a/b.txt", "t", 1<<40, 64<<20)
		}
		vectors = append(vectors, vector{k.File.String(), k.Index, k.LocationHash()})
	}
	checkVectors(t, "location.json", vectors)
}

func TestFileIDVectors(t *testing.T) {
	vectors := struct {
		Derived []fileIDVector `json:"derived"`
		Minted  []mintedVector `json:"minted"`
	}{}
	for _, v := range []struct {
		name, path, tag   string
		mount             uint64
		length, blockSize int64
	}{
		{"small file", "a/b.txt", `"d41d8cd98f00b204e9800998ecf8427e"`, 1, 5, 64 << 20},
		{"empty file", "empty", `"d41d8cd98f00b204e9800998ecf8427e"`, 1, 0, 64 << 20},
		{"no path and no tag", "", "", 0, 0, 256 << 10},
		{"other mount", "a/b.txt", `"d41d8cd98f00b204e9800998ecf8427e"`, 2, 5, 64 << 20},
		{"other tag", "a/b.txt", `"d41d8cd98f00b204e9800998ecf8427f"`, 1, 5, 64 << 20},
		{"other length", "a/b.txt", `"d41d8cd98f00b204e9800998ecf8427e"`, 1, 6, 64 << 20},
		{"other block size", "a/b.txt", `"d41d8cd98f00b204e9800998ecf8427e"`, 1, 5, 1 << 20},
		{"the border between path and tag counts", "ab", "c", 1, 1, 64 << 20},
		{"the border between path and tag counts, other side", "a", "bc", 1, 1, 64 << 20},
		{"a path that is not UTF-8", "x/\xff\x00\xfe", "t", 1<<64 - 1, 1 << 60, 1 << 30},
		{"long path", strings.Repeat("d/", 500) + "f", "t", 7, 1 << 40, 64 << 20},
	} {
		vectors.Derived = append(vectors.Derived, fileIDVector{
			v.name, v.mount, hex.EncodeToString([]byte(v.path)), hex.EncodeToString([]byte(v.tag)), v.length, v.blockSize,
			block.DeriveFileID(v.mount, v.path, v.tag, v.length, v.blockSize).String(),
		})
	}
	for _, random := range [][16]byte{{}, {0: 0x7f, 15: 1}, {0: 0xff, 8: 0x80}} {
		vectors.Minted = append(vectors.Minted, mintedVector{hex.EncodeToString(random[:]), block.MintFileID(random).String()})
	}
	checkVectors(t, "fileid.json", vectors)
}

// goodTickets are tickets that every decoder must take, by name.
func goodTickets() map[string]*block.Ticket {
	plain := block.Ticket{MountID: 1, Path: "a/b.txt", Tag: `"d41d8cd98f00b204e9800998ecf8427e"`, Length: 5, BlockSize: 64 << 20}
	variants := map[string]func(*block.Ticket){
		"1 plain, never expires": func(*block.Ticket) {},
		"2 expires":              func(t *block.Ticket) { t.Expiry = time.UnixMilli(1_900_000_000_123).UTC() },
		"3 unsettled":            func(t *block.Ticket) { t.Unsettled = true },
		"4 signed": func(t *block.Ticket) {
			t.KeyID, t.Identity, t.Signature = 7, "spiffe://x/y", bytes.Repeat([]byte{0xab}, 64)
		},
		"5 empty file":             func(t *block.Ticket) { t.Length = 0 },
		"6 a path that is no text": func(t *block.Ticket) { t.Path = "x/\xff\x00\xfe" },
		"7 no path, no tag":        func(t *block.Ticket) { t.Path, t.Tag = "", "" },
		"8 bounds": func(t *block.Ticket) {
			t.MountID, t.KeyID, t.Length, t.BlockSize = 1<<64-1, 1<<32-1, block.MaxFileLength, block.MaxBlockSize
			t.Expiry = time.UnixMilli(1 << 53).UTC()
		},
		"9 minted file": func(t *block.Ticket) { t.FileID = block.MintFileID([16]byte{1, 2, 3}) },
	}
	tickets := map[string]*block.Ticket{}
	for name, change := range variants {
		v := plain
		change(&v)
		if v.FileID.IsZero() {
			v.FileID = v.Derive()
		}
		tickets[name] = &v
	}
	return tickets
}

// badTickets are encodings that every decoder must refuse, by name.
func badTickets(t *testing.T) map[string][]byte {
	t.Helper()
	good := encode(t, goodTickets()["4 signed"])
	edit := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(good)) }
	set := func(at int, with ...byte) []byte {
		return edit(func(b []byte) []byte { copy(b[at:], with); return b })
	}
	return map[string][]byte{
		"01 nothing":                       {},
		"02 cut in the fixed part":         good[:55],
		"03 cut before the path":           good[:56],
		"04 cut by one byte":               good[:len(good)-1],
		"05 one byte too many":             append(bytes.Clone(good), 0),
		"06 version 0":                     set(0, 0),
		"07 version 2":                     set(0, 2),
		"08 an unknown flag":               set(1, 2),
		"09 reserved bytes are not 0":      set(3, 1),
		"10 length is negative":            set(23, 0xff),
		"11 length is over its bound":      set(16, 1, 0, 0, 0, 0, 0, 0, 0x10),
		"12 block size is 0":               set(24, 0, 0, 0, 0, 0, 0, 0, 0),
		"13 block size is no whole page":   set(24, 1),
		"14 block size is over its bound":  set(24, 0, 0, 0, 0x80),
		"15 expiry is out of range":        set(39, 1),
		"16 file ID of another file":       set(55, good[55]^1),
		"17 path's length is over the end": set(56, 0xff, 0xff),
		"18 path's length is 4 GiB - 1":    set(56, 0xff, 0xff, 0xff, 0xff),
		"19 path is another one":           set(60, 'b'),
		"20 tag's length is short":         set(67, 1),
	}
}

func encode(t *testing.T, ticket *block.Ticket) []byte {
	t.Helper()
	b, err := ticket.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTicketVectors(t *testing.T) {
	vectors := struct {
		Good []ticketVector    `json:"good"`
		Bad  []badTicketVector `json:"bad"`
	}{}
	for name, v := range sorted(goodTickets()) {
		var ms int64
		if !v.Expiry.IsZero() {
			ms = v.Expiry.UnixMilli()
		}
		b := encode(t, v)
		vectors.Good = append(vectors.Good, ticketVector{
			Name: name, MountID: v.MountID, Path: hex.EncodeToString([]byte(v.Path)), Tag: hex.EncodeToString([]byte(v.Tag)),
			Length: v.Length, BlockSize: v.BlockSize, FileID: v.FileID.String(), ExpiryMS: ms, Unsettled: v.Unsettled,
			KeyID: v.KeyID, Identity: hex.EncodeToString([]byte(v.Identity)), Signature: hex.EncodeToString(v.Signature),
			Unsigned: hex.EncodeToString(v.AppendUnsigned(nil)), Encoded: hex.EncodeToString(b),
		})
		got, err := block.ParseTicket(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(v, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
	for name, b := range sorted(badTickets(t)) {
		vectors.Bad = append(vectors.Bad, badTicketVector{name, hex.EncodeToString(b)})
		if got, err := block.ParseTicket(b); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
	checkVectors(t, "ticket.json", vectors)
}

func TestGeometryVectors(t *testing.T) {
	vectors := struct {
		PageSize   int64            `json:"page_size,string"`
		Geometries []geometryVector `json:"geometries"`
	}{PageSize: block.PageSize}
	const page, mib = block.PageSize, 1 << 20
	for _, g := range []block.Geometry{
		{0, 64 * mib},
		{1, 64 * mib},
		{page, 64 * mib},
		{page + 1, page},
		{64 * mib, 64 * mib},
		{64*mib + 1, 64 * mib},
		{150*mib + 12345, 64 * mib},
		{1 << 50, 1 << 30},
	} {
		v := geometryVector{Length: g.Length, BlockSize: g.BlockSize, Blocks: g.Blocks(), Pages: g.Pages()}
		if g.Length > 0 {
			v.LastBlock = extentVector(g.Block(g.Blocks() - 1))
			v.LastPage = extentVector(g.Page(g.Pages() - 1))
		}
		for _, e := range []block.Extent{
			{0, 0}, {0, 1}, {page - 1, 1}, {page - 1, 2}, {64*mib - 1, 2}, {1, 100 * mib}, {g.Length, 1}, {0, 1 << 60},
		} {
			r := rangeVector{Extent: extentVector(e)}
			r.FirstPage, r.EndPage = g.PageRange(e)
			r.FirstBlock, r.EndBlock = g.BlockRange(e)
			v.Ranges = append(v.Ranges, r)
		}
		vectors.Geometries = append(vectors.Geometries, v)
	}
	checkVectors(t, "geometry.json", vectors)
}

func TestPlacementVectors(t *testing.T) {
	const a, b, c, d = "01J0000000000000000000000A", "01J0000000000000000000000B", "01J0000000000000000000000C", "01J0000000000000000000000D"
	var vectors []placementVector
	for _, p := range []struct {
		name    string
		limit   int64
		workers []workerVector
	}{
		{"one worker", 8 << 30, []workerVector{{a, 1}}},
		{"three equal workers, blocks are placed one by one", 0, []workerVector{{a, 1 << 40}, {b, 1 << 40}, {c, 1 << 40}}},
		{"four workers of unequal weight, one of them with none", 64 << 20, []workerVector{{a, 1 << 30}, {b, 2 << 30}, {c, 4 << 30}, {d, 0}}},
		{"no workers", 8 << 30, nil},
	} {
		v := placementVector{Name: p.name, WholeFileLimit: p.limit, Workers: p.workers}
		placement := block.Placement{Epoch: 1, WholeFileLimit: p.limit}
		for _, w := range p.workers {
			placement.Workers = append(placement.Workers, block.PlacedWorker{ID: block.WorkerID(w.ID), Weight: w.Weight})
		}
		for i := range 4 {
			id := block.DeriveFileID(uint64(i), "f", "t", 1<<30, 64<<20)
			for _, length := range []int64{1 << 20, 1 << 30} {
				for _, index := range []uint32{0, 1, 15} {
					owners := placement.Owners(block.Key{File: id, Index: index}, length, len(p.workers))
					v.Keys = append(v.Keys, ownersVector{id.String(), index, length, owners})
				}
			}
		}
		vectors = append(vectors, v)
	}
	checkVectors(t, "placement.json", vectors)
}

func TestChecksumVectors(t *testing.T) {
	ramp := make([]byte, 32)
	for i := range ramp {
		ramp[i] = byte(i)
	}
	down := make([]byte, 32)
	for i := range down {
		down[i] = byte(31 - i)
	}
	readPDU, err := hex.DecodeString("01c00000000000000000000000000000" + "14000000000004000000001400000018" + "28000000000000000200000000000000")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []checksumVector
	for _, v := range []struct {
		name  string
		bytes []byte
		want  uint32 // RFC 3720, appendix B.4, in its order of bits
	}{
		{"nothing", nil, 0},
		{"RFC 3720: 32 bytes of zeroes", make([]byte, 32), 0x8a9136aa},
		{"RFC 3720: 32 bytes of ones", bytes.Repeat([]byte{0xff}, 32), 0x62a8ab43},
		{"RFC 3720: 32 bytes up", ramp, 0x46dd794e},
		{"RFC 3720: 32 bytes down", down, 0x113fdb5c},
		{"RFC 3720: an iSCSI read", readPDU, 0xd9963a56},
		{"the check value of CRC catalogs", []byte("123456789"), 0xe3069283},
	} {
		got := block.Checksum(v.bytes)
		if got != v.want {
			t.Errorf("%s: %08x, want %08x", v.name, got, v.want)
		}
		for cut := range len(v.bytes) {
			if u := block.UpdateChecksum(block.Checksum(v.bytes[:cut]), v.bytes[cut:]); u != v.want {
				t.Errorf("%s in two pieces, cut at %d: %08x, want %08x", v.name, cut, u, v.want)
			}
		}
		vectors = append(vectors, checksumVector{v.name, hex.EncodeToString(v.bytes), hex.EncodeToString([]byte{
			byte(got >> 24), byte(got >> 16), byte(got >> 8), byte(got),
		})})
	}
	checkVectors(t, "checksum.json", vectors)
}

// TestVectorsInPython has the vectors computed by a program that shares no
// code with this package.
func TestVectorsInPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: needs python3")
	}
	out, err := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "check.py")).CombinedOutput()
	if err != nil {
		t.Errorf("check.py: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
