package cacheworker

import (
	"context"
	"sync/atomic"
	"time"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/tier"
	"millrace/ufs"
)

// repairPatience bounds one fetch of a damaged page, the wait for its turn
// included: then the tier tries again later.
const repairPatience = time.Minute

// Refetch is to be the tier's Options.Refetch: it brings a page that the tier
// has and found damaged, of the very version, behind all that readers and
// loads want of the under-stores. It may be called before Run.
func (w *Worker) Refetch(ctx context.Context, f tier.File, page int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, repairPatience)
	defer cancel()
	ctx, release := w.untilStop(ctx)
	defer release()
	data, err := w.fetcher.refetch(ctx, f, page)
	if err != nil {
		select {
		case <-w.stopping: // it knows no mounts any more, which says nothing of the page
			err = errStopping
		default:
		}
	}
	return data, errs.Wrap(err, "fetch", f.Path)
}

// refetch makes one request for a page that no flight brings, as it is there.
func (f *fetcher) refetch(ctx context.Context, file tier.File, page int64) ([]byte, error) {
	m, release, err := f.mounts.use(ctx, file.MountID)
	if err != nil {
		return nil, err
	}
	defer release()
	e := file.Geometry().PagesExtent(page, page+1)
	var urgent atomic.Int32
	urgent.Store(int32(urgentRepair))
	leave, err := f.enter(ctx, m, e.Length, &urgent)
	if err != nil {
		return nil, err
	}
	defer leave()
	body, err := m.store.Read(ctx, ufs.Object{Path: file.Path, Tag: file.Tag, Length: file.Length}, e)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data := make([]byte, e.Length, block.PageSize)
	if err := readFull(body, data, true); err != nil {
		return nil, err
	}
	return data, nil
}
