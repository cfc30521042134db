package loadjob

import (
	"context"
	"fmt"
	"iter"
	"math"
	"path"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/wait"
)

// FileEntry is one file of the namespace with the right to read it.
type FileEntry struct {
	Path   string // in the namespace: absolute and clean
	Ticket *block.Ticket
}

// Source lists the namespace.
type Source interface {
	// List yields every file at and below path whose path sorts behind
	// after, in byte order of the path; a path that is a file yields itself.
	// It ends after the first error.
	List(ctx context.Context, path, after string) iter.Seq2[FileEntry, error]
}

// Looker is a Source that can look at one file anew. Plan asks it about files
// that may still change under the same version tag, after a wait.
type Looker interface {
	// Look describes the file at path as it is now in the under-store.
	Look(ctx context.Context, path string) (FileEntry, error)
}

// A file is unsettled while its time stamp is within 2 s of the look.
const (
	settleWait  = 2100 * time.Millisecond
	settleTries = 3
)

// Item is a piece of work: whole blocks of one file. Items are numbered from
// 1 within one call of Plan.
type Item struct {
	Number     uint64
	Ticket     *block.Ticket
	FirstBlock uint32
	BlockCount uint32 // 0 for an empty file
	file       *file  // what the items of one file share; nil on a worker
}

// Extent returns the bytes that the item covers.
func (i *Item) Extent() block.Extent {
	g := i.Ticket.Geometry()
	start := int64(i.FirstBlock) * g.BlockSize
	return block.Extent{Offset: start, Length: int64(i.BlockCount) * g.BlockSize}.Intersect(g.Whole())
}

// Path returns the namespace path of the item's file, for messages; "" when
// the item did not come from Plan.
func (i *Item) Path() string {
	if i.file == nil {
		return ""
	}
	return i.file.cursor.After
}

// Plan lists the job's paths from its cursor on and passes each item to emit,
// in order. emit blocks when it wants no more for the time being, and ends
// the planning by an error, which Plan returns. A path that lies below
// another one of the job is listed with that one only.
func Plan(ctx context.Context, job Job, src Source, emit func(*Item) error) error {
	if c := job.Cursor; c.PathIndex < 0 || c.PathIndex > len(job.Paths) {
		return errs.E(errs.Corrupt, "plan", job.ID, fmt.Errorf("its cursor is at path %d of %d", c.PathIndex, len(job.Paths)))
	}
	p := planner{src: src, emit: emit}
	covered := coveredPaths(job.Paths)
	for i := job.Cursor.PathIndex; i < len(job.Paths); i++ {
		if covered[i] {
			continue
		}
		after := ""
		if i == job.Cursor.PathIndex {
			after = job.Cursor.After
		}
		if err := p.path(ctx, i, job.Paths[i], after); err != nil {
			return err
		}
	}
	return nil
}

// coveredPaths says of each path whether another one includes it.
func coveredPaths(paths []string) []bool {
	first := make(map[string]int, len(paths))
	for i, p := range paths {
		if _, ok := first[p]; !ok {
			first[p] = i
		}
	}
	covered := make([]bool, len(paths))
	for i, p := range paths {
		covered[i] = first[p] != i
		for p != "/" && p != "." && !covered[i] {
			p = path.Dir(p)
			_, covered[i] = first[p]
		}
	}
	return covered
}

type planner struct {
	src    Source
	emit   func(*Item) error
	number uint64
}

func (p *planner) path(ctx context.Context, index int, root, after string) error {
	for e, err := range p.src.List(ctx, root, after) {
		if err != nil {
			return errs.Wrap(err, "list", root)
		}
		if after != "" && e.Path <= after {
			return errs.E(errs.Internal, "list", root, fmt.Errorf("%q was listed behind %q", e.Path, after))
		}
		after = e.Path
		if e.Ticket == nil {
			return errs.E(errs.Internal, "list", root, fmt.Errorf("%q was listed without a ticket", e.Path))
		}
		if e.Ticket, err = p.settled(ctx, e); err != nil {
			return err
		}
		if err := p.file(Cursor{PathIndex: index, After: e.Path}, e.Ticket); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// settled returns the ticket of e, for an unsettled file as it is after a
// wait. A file that does not settle keeps its ticket: its load fails, or
// finds that it is gone, and says so.
func (p *planner) settled(ctx context.Context, e FileEntry) (*block.Ticket, error) {
	looker, ok := p.src.(Looker)
	if !ok {
		return e.Ticket, nil
	}
	for try := 0; e.Ticket.Unsettled && try < settleTries; try++ {
		// The file may have settled since it was listed: look before waiting.
		if try > 0 {
			if err := wait.For(ctx, settleWait); err != nil {
				return nil, err
			}
		}
		now, err := looker.Look(ctx, e.Path)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || now.Ticket == nil {
			return e.Ticket, nil //nolint:nilerr // the load meets the same error and counts it for this file
		}
		e.Ticket = now.Ticket
	}
	return e.Ticket, nil
}

// file emits the items of one file.
func (p *planner) file(c Cursor, t *block.Ticket) error {
	g := t.Geometry()
	blocks := g.Blocks()
	if blocks > math.MaxUint32 {
		return errs.E(errs.Invalid, "plan", c.After, fmt.Errorf("%d blocks are too many", blocks))
	}
	items := max(blocks, 1)
	f := &file{cursor: c, length: t.Length, left: items}
	for i := range items {
		p.number++
		item := &Item{Number: p.number, Ticket: t, FirstBlock: uint32(i), BlockCount: 1, file: f}
		if blocks == 0 {
			item.BlockCount = 0
		}
		if err := p.emit(item); err != nil {
			return err
		}
	}
	return nil
}
