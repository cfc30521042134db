package cacheworker

import (
	"bytes"
	"testing"

	"millrace/block"
	"millrace/blockio"
)

// responder keeps what a read sends.
type responder struct {
	blockio.Responder
	bytes []byte
	crcs  int
}

func (r *responder) SendFile(f blockio.FileSection, off, n int64) error {
	p := make([]byte, n)
	_, err := f.ReadAt(p, off)
	r.bytes = append(r.bytes, p...)
	return err
}

func (r *responder) PageCRC(int64, uint32) { r.crcs++ }

// TestPromptReads: what is cached is answered at once, unless each read is to
// be checked, or the file is not to be kept.
func TestPromptReads(t *testing.T) {
	small, large := block.Extent{Offset: 5, Length: 4096}, block.Extent{Offset: 5, Length: 3 * block.PageSize}
	for name, tc := range map[string]struct {
		options   map[string]string
		unsettled bool
		cold      bool
		want      bool
	}{
		"cached":     {want: true},
		"verified":   {options: map[string]string{"verify": "always"}},
		"unsettled":  {unsettled: true},
		"not cached": {cold: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{options: tc.options})
			tk := r.store.put("f", "v1", 4*mib)
			if !tc.cold {
				r.mustRead(tk, tk.Geometry().Whole())
			}
			tk.Unsettled = tc.unsettled
			f, err := r.w.Open(t.Context(), tk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			prompt := f.(blockio.Prompt) //nolint:forcetypeassert // a test
			hits, served := r.w.counters.pageHits.Load(), r.w.counters.bytesServed.Load()
			p := make([]byte, small.Length)
			crc, ok := prompt.ReadNow(t.Context(), blockio.ReadRequest{Extent: small}, p)
			if ok != tc.want {
				t.Fatalf("a small read: %v", ok)
			}
			var to responder
			sent, err := prompt.SendNow(t.Context(), blockio.ReadRequest{Extent: large}, &to)
			if err != nil {
				t.Fatal(err)
			}
			hits, served = r.w.counters.pageHits.Load()-hits, r.w.counters.bytesServed.Load()-served
			if !tc.want {
				if sent || hits != 0 || served != 0 || to.bytes != nil {
					t.Fatalf("something was done: %v, %d hits, %d bytes", sent, hits, served)
				}
				return
			}
			if !bytes.Equal(p, r.store.part("f", small)) || crc != block.Checksum(r.store.part("f", tk.Geometry().Page(0))) {
				t.Error("wrong bytes, or their checksum")
			}
			if !sent { // where the kernel does not tell what is in memory
				t.Skip("SKIPPED, NOT TESTED: nothing is sent at once here")
			}
			if !bytes.Equal(to.bytes, r.store.part("f", large)) || to.crcs != 4 {
				t.Errorf("wrong bytes, or %d checksums", to.crcs)
			}
			if hits != 5 || served != small.Length+large.Length {
				t.Errorf("%d hits, %d bytes are counted", hits, served)
			}
		})
	}
}

// TestPromptReadsAhead: a sequential reader of what is cached is fetched for,
// also when it is answered at once.
func TestPromptReadsAhead(t *testing.T) {
	r := newRig(t, rigOptions{})
	tk := r.store.put("f", "v1", 4*mib)
	page := tk.Geometry().Page(0)
	f, err := r.w.Open(t.Context(), tk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := r.open(r.conn, tk)
	last := block.Extent{Offset: page.Length - 1, Length: 1}
	if err := r.read(r.conn, tk, h, last); err != nil { // not the start of a sequence
		t.Fatal(err)
	}
	if gets, _ := r.store.fetched(); gets != 1 {
		t.Fatalf("%d requests for one page", gets)
	}
	p := make([]byte, 4096)
	for off := int64(0); off < page.Length-8192; off += int64(len(p)) {
		req := blockio.ReadRequest{Extent: block.Extent{Offset: off, Length: int64(len(p))}}
		eventually(t, "the read to be answered at once", func() bool { // not while a fill begins, which was told to begin by the one before
			_, ok := f.(blockio.Prompt).ReadNow(t.Context(), req, p) //nolint:forcetypeassert // a test
			return ok
		})
	}
	eventually(t, "something is fetched ahead", func() bool {
		gets, _ := r.store.fetched()
		return gets > 0
	})
}
