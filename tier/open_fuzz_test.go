package tier

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// FuzzOpen: whatever whole records an index holds, in a log and in a snapshot,
// and whatever the format file says, a directory opens or is refused; what it
// then says that it holds, it holds after a clean stop too.
func FuzzOpen(f *testing.F) {
	file := testFile("a", "v1", 1000)
	seed := filepath.Join(f.TempDir(), "seed")
	s := openStore(f, seed, 64<<20, withFS(quick()))
	fill(f, s, file)
	abandon(f, s)
	backing, err := filepath.Rel(seed, s.dirs[0].partName(file.ID))
	if err != nil {
		f.Fatal(err)
	}
	format, err := os.ReadFile(filepath.Join(seed, formatFile))
	if err != nil {
		f.Fatal(err)
	}
	var all []byte
	for _, v := range testRecords() {
		all = appendPayload(all, appendFrame(nil, &v.Fields)[frameHeader:])
	}
	part := record{
		Type: recordPart, Serial: 1, File: file.ID, MountID: 1, Length: file.Length, BlockSize: file.BlockSize,
		Path: []byte(file.Path), Tag: []byte(file.Tag),
	}
	pages := record{Type: recordPages, Serial: 1, BlockLength: 1000, Count: 1, CRCs: []uint32{7}}
	var good []byte
	for _, r := range []*record{&part, &pages, {Type: recordCheckpoint, Flags: flagClean, Segment: 1, Offset: headerSize}, {Type: recordEnd, Records: 2}} {
		good = appendPayload(good, appendFrame(nil, r)[frameHeader:])
	}
	f.Add(format, good, []byte(nil))
	f.Add(format, all, good)
	f.Add([]byte(`{"format":99}`), []byte(nil), []byte(nil))
	f.Add([]byte(`{`), good, all)

	dir := filepath.Join(f.TempDir(), "cache")
	f.Fuzz(func(t *testing.T, format, log, snapshot []byte) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		write := func(name string, b []byte) {
			name = filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(formatFile, format)
		write(backing, pageBytes(file, 0))
		write(segmentName(indexDir, 1), indexOf(segmentMagic, log))
		write(snapshotName(indexDir, 1), indexOf(snapshotMagic, snapshot))
		s, err := tryOpen(dir, 64<<20, withFS(quick()))
		if err != nil {
			return
		}
		for range s.Blocks() {
			// It must not panic.
		}
		held := s.Stats()
		if st := s.Status()[0]; held.CachedBytes < 0 || held.CachedFiles < 0 || st.Used < 0 || st.Held < 0 {
			t.Errorf("%+v, %+v", held, st)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = tryOpen(dir, 64<<20, withFS(quick()))
		if err != nil {
			t.Fatalf("what was opened and closed is not opened again: %v", err)
		}
		defer s.Close()
		if again := s.Stats(); again.CachedBytes != held.CachedBytes || again.CachedFiles != held.CachedFiles {
			t.Errorf("it held %+v and holds %+v after a clean stop", held, again)
		}
	})
}

// appendPayload and indexOf are how a fuzzed input stands for records: each
// with its length before it, so that the fuzzer need not find checksums.
func appendPayload(b, payload []byte) []byte {
	b = append(b, byte(min(len(payload), 255)))
	return append(b, payload[:min(len(payload), 255)]...)
}

func indexOf(magic string, payloads []byte) []byte {
	file := header{magic: magic, seq: 1, boot: testOptions().BootID}.encode()
	for len(payloads) > 0 {
		n := min(int(payloads[0]), len(payloads)-1)
		payload := payloads[1 : 1+n]
		payloads = payloads[1+n:]
		head := binary.LittleEndian.AppendUint32(nil, uint32(n))
		head = binary.LittleEndian.AppendUint32(head, frameChecksum(head, payload))
		file = append(append(file, head...), payload...)
	}
	return file
}
