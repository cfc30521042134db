package client

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace/api"
	"millrace/block"
)

// FuzzEntry: whatever a master says of a name, an entry that is taken has a
// path, a size that is no less than 0, and a ticket for just that file.
func FuzzEntry(f *testing.F) {
	t := &block.Ticket{MountID: 1, Path: "a", Tag: "v1", Length: 5, BlockSize: block.MinBlockSize}
	t.FileID = t.Derive()
	ticket, err := t.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range []*api.Entry{
		{Path: []byte("/a"), Type: api.FileType_FILE_TYPE_FILE, Size: 5, FileId: t.FileID[:], Ticket: ticket, BlockSize: t.BlockSize},
		{Path: []byte("/d"), Type: api.FileType_FILE_TYPE_DIR, Size: -1, MtimeMs: -1 << 63},
		{Path: []byte("/a/../b"), Type: api.FileType_FILE_TYPE_FILE},
	} {
		b, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, int64(1000))
	}
	asked := time.Now()
	f.Fuzz(func(t *testing.T, b []byte, validMS int64) {
		var sent api.Entry
		if proto.Unmarshal(b, &sent) != nil {
			return
		}
		e, err := entryOf(&sent, validMS, asked)
		if err != nil {
			return
		}
		if e.Path == "" || e.Path[0] != '/' || e.Size < 0 || e.ValidUntil.Sub(asked) > maxValid {
			t.Errorf("%+v", e)
		}
		if x := e.Ticket; x != nil && (x.FileID != e.FileID || x.Length != e.Size) {
			t.Errorf("the ticket %+v is not for %+v", x, e)
		}
	})
}
