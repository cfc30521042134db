package blockio

import (
	"bytes"
	"io"
	"os"
	"sync"
	"testing"

	"millrace/block"
	"millrace/internal/errs"
)

func FuzzRanges(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		if c.Ranges != nil {
			f.Add(unhex(f, c.Hex)[headerSize:], int64(1<<21), block.DefaultBlockSize, uint32(noBlock))
		}
	}
	f.Add(bytes.Repeat([]byte{255}, 2*readPayloadSize), int64(1<<60), int64(1<<18), uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, length, blockSize int64, index uint32) {
		g := block.Geometry{Length: length, BlockSize: blockSize}
		if len(b) > MaxRanges*readPayloadSize || g.Validate() != nil {
			return
		}
		extents, err := appendExtents(nil, b, g, index)
		if err != nil {
			return
		}
		if len(extents)*readPayloadSize != len(b) {
			t.Errorf("%d ranges of %d bytes", len(extents), len(b))
		}
		var sum int64
		for _, e := range extents {
			if e.Offset < 0 || e.Length < 0 || e.End() > length {
				t.Errorf("accepted %v of %+v", e, g)
			}
			sum += e.Length
		}
		if sum > MaxReadLength {
			t.Errorf("accepted %d bytes", sum)
		}
	})
}

func FuzzTouches(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		if c.Touches != nil {
			f.Add(unhex(f, c.Hex)[headerSize:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		touches, err := parseTouches(b)
		if err != nil {
			return
		}
		var again []byte
		for i := range touches {
			again = appendTouch(again, &touches[i])
		}
		b = bytes.Clone(b)
		for i := touchSize - 4; i < len(b); i += touchSize {
			clear(b[i : i+4]) // reserved
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

func FuzzRecalls(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		if c.Recalls != nil {
			f.Add(unhex(f, c.Hex)[headerSize:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseRecalls(b)
		if err != nil {
			return
		}
		b = bytes.Clone(b)
		clear(b[12:recallsFixed]) // reserved
		if again := appendRecalls(nil, &v); !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

func FuzzDescriptor(f *testing.F) {
	for _, c := range loadVectors(f).Frames {
		if c.Descriptor != nil {
			f.Add(unhex(f, c.Hex)[headerSize:], int64(c.Descriptor.Length))
		}
	}
	f.Add(bytes.Repeat([]byte{255}, descriptorSize), block.MaxFileLength)
	f.Add(make([]byte, descriptorSize+markSize), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, length int64) {
		if len(b) < descriptorSize || len(b) > descriptorSize+markSize || length < 0 || length > block.MaxFileLength {
			return
		}
		base, err := parseDescriptor(b, length)
		if err != nil {
			return
		}
		var mark uint64
		if len(b) > descriptorSize {
			var rest []byte
			if mark, rest, err = cutMark(b); err != nil || len(rest) != descriptorSize {
				return
			}
			if mark == 0 {
				t.Error("accepted a mark of 0")
			}
		}
		if base < 0 || base+length < 0 {
			t.Errorf("accepted a base of %d for %d bytes", base, length)
		}
		if again := appendDescriptor(nil, descriptorPayload{Base: uint64(base), Length: uint64(length), Mark: mark}); !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

// FuzzClientOps feeds a client that waits for one request of each kind. Only a
// whole answer is a success, and no descriptor that came stays open.
func FuzzClientOps(f *testing.F) {
	const length = 1 << 20
	disk := onDisk(f, pattern(length))
	data := func(n int) []byte {
		return append(appendHeader(nil, &header{Op: opData, RequestID: 2, Length: uint32(n)}), make([]byte, n)...)
	}
	end := func(e endPayload, handle uint32) []byte {
		n := uint32(endFixed + len(e.Text) + len(e.CRCs)*crcSize)
		return appendEnd(appendHeader(nil, &header{Op: opEnd, RequestID: 2, Handle: handle, Length: n}), &e)
	}
	descriptor := descriptorFrames(descriptorPayload{Length: length}, &endPayload{})
	f.Add(uint8(0), false, append(data(10_011), end(endPayload{}, 0)...))
	f.Add(uint8(0), true, append(data(10_011), end(endPayload{CRCs: []pageCRC{{Page: 3}}}, 0)...))
	f.Add(uint8(1), false, append(data(5000), end(endPayload{}, 7)...))
	f.Add(uint8(1), false, append(data(5000), end(endPayload{}, 1)...))
	f.Add(uint8(2), true, descriptor)
	f.Add(uint8(2), false, descriptor)
	f.Add(uint8(2), true, descriptor[:headerSize+5])
	f.Add(uint8(2), true, append(bytes.Clone(descriptor[:headerSize+descriptorSize]), end(endPayload{Failed: true, Kind: errs.Busy, Text: "x"}, 0)...))
	f.Add(uint8(3), true, end(endPayload{}, 0))
	f.Add(uint8(4), true, append(data(recallsFixed+16), end(endPayload{}, 0)...))
	f.Add(uint8(4), true, end(endPayload{}, 0))
	f.Add(uint8(5), true, descriptorFrames(descriptorPayload{Length: length, Mark: 5}, &endPayload{}))
	f.Add(uint8(5), true, descriptor)
	f.Add(uint8(6), false, end(endPayload{}, 0))
	f.Add(uint8(6), false, append(data(5000), end(endPayload{}, 0)...))
	f.Add(uint8(6), false, end(endPayload{CRCs: []pageCRC{{}}}, 0))
	f.Fuzz(func(t *testing.T, op uint8, pass bool, b []byte) {
		near, far := socketPair(t)
		var served sync.WaitGroup
		served.Go(func() {
			defer far.Close()
			if err := lieUntil(far, openedFrame(1)); err != nil {
				t.Error(err)
				return
			}
			var files []*os.File
			if pass && len(b) > 0 {
				files = []*os.File{disk}
			}
			passing(t, far, fixFrames(b), files...)
			_ = far.CloseWrite()
			_, _ = io.Copy(io.Discard, far) // until the client has enough
		})
		c := trusting(t, near)
		h := mustOpen(t, c, "f", length)
		switch op % 7 {
		case 0:
			rs := ranges([2]int{5, 10}, [2]int{3, 0}, [2]int{1, 1}, [2]int{length - 10_000, 10_000})
			if n, err := c.ReadV(t.Context(), h, rs, ReadOptions{}); err == nil && n != 10_011 {
				t.Errorf("%d bytes without an error", n)
			}
		case 1:
			handle, err := c.OpenRead(t.Context(), ticketOf("g", length), make([]byte, 5000), 0, ReadOptions{})
			if (err == nil) != (handle != 0) || handle == h {
				t.Errorf("handle %d, %v", handle, err)
			}
		case 2:
			fd, base, err := c.Descriptor(t.Context(), h, DescriptorOptions{})
			if (err == nil) != (fd != nil) || err == nil && (!pass || base != 0) {
				t.Errorf("descriptor %v at %d, %v", fd, base, err)
			}
			if fd != nil {
				fd.Close()
			}
		case 3:
			_ = c.Touch(t.Context(), []Touch{{Count: 1}}) // may well fail
		case 4:
			_, _ = c.Recalls(t.Context(), 1) // the same
		case 5:
			fd, base, mark, err := c.PartialDescriptor(t.Context(), h)
			if (err == nil) != (fd != nil) || err == nil && (!pass || base != 0 || mark == 0) {
				t.Errorf("descriptor %v at %d with mark %d, %v", fd, base, mark, err)
			}
			if fd != nil {
				fd.Close()
			}
		case 6:
			if inPlace, err := c.ReadInPlace(t.Context(), h, make([]byte, 5000), 0, 5, ReadOptions{}); inPlace && err != nil {
				t.Errorf("in place, and %v", err)
			}
		}
		c.Close()
		served.Wait()
		noneLeft(t, disk)
	})
}
