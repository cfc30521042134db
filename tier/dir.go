package tier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"millrace/block"
	"millrace/internal/errs"
	"millrace/internal/vfs"
)

// Names in a cache directory.
const (
	formatFile = "format"
	lockFile   = "lock"
	dataDir    = "data"
	heldDir    = "held"
	indexDir   = "index"
)

// baseCharge is what the directory itself takes, in blocks: four directories,
// format, lock, and some to spare for a held/ of a few hundred names.
const baseCharge = 16

// defaultBlock is the size of a block before the file system was asked.
const defaultBlock = 4096

// dir is one cache directory: its files, its index, its ledger, its policy.
type dir struct {
	cfg   Config
	fs    vfs.FS
	log   *slog.Logger
	store *Store
	num   uint8 // in Store.byNumber
	slow  bool  // there is a faster tier

	root   string
	block  int64 // of the file system, in bytes
	lock   vfs.File
	device uint64 // that the directory is on; 0 if it is not known

	health

	out bool // forgotten, after a failure; guarded by upkeepMu

	canPunch bool // parts above wholeLimit are evicted by block
	canLease atomic.Bool

	ledger ledger
	queue  policy // of what is owned
	files  fileCache
	leaves leaves
	fills  fillLocks

	replicas replicas

	// gate keeps the log's order and the memory's apart from a rotation:
	// whoever appends a record holds it shared until the memory says the same.
	gate  sync.RWMutex
	index indexLog

	roomMu   sync.Mutex // one goroutine evicts at a time
	upkeepMu sync.Mutex // checkpoint, compaction, close

	indexMu    sync.Mutex
	indexFiles map[string]int64 // bytes charged for each file of index/
	snapshot   int64            // bytes of the last snapshot

	unknown  atomic.Bool  // a file has more room than its recorded pages, or the index does not know it: the next start has to look
	unsynced atomic.Int64 // bytes written since the last checkpoint
	doubts   atomic.Int64 // syncs that failed: what was written or checked before one is to be checked again
	ioErrors atomic.Int64
	warned   atomic.Bool // the first of a run of disk errors was logged

	heldMu     sync.Mutex
	held       []heldFile
	superseded []*part                // older versions, first victims; may be dead by now
	older      int                    // how many of those there were when dead ones were last taken off
	copies     map[block.FileID]*part // that movers make; their names are taken
	untidy     map[*part]struct{}     // parts that upkeep has to come back to
	heldNames  atomic.Uint64
}

type heldFile struct {
	name  string
	bytes int64
}

// formatInfo is the content of the format file.
type formatInfo struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
}

func newDir(cfg Config, num uint8, s *Store) *dir {
	d := &dir{
		cfg: cfg, fs: s.opts.FS, store: s, num: num, root: filepath.Clean(cfg.Dir), queue: &paced{},
		block:      defaultBlock,
		leaves:     leaves{block: defaultBlock},
		log:        s.log.With(slog.String("dir", cfg.Dir)),
		files:      fileCache{limit: cfg.OpenFiles},
		indexFiles: map[string]int64{},
		copies:     map[block.FileID]*part{},
		fills:      fillLocks{busy: map[fillKey]chan struct{}{}},
		health:     health{down: make(chan struct{})},
	}
	if cfg.Advice == RistrettoAdvice {
		d.queue = newAdvised(newRistretto, func() int64 { return d.ledger.state().limit }, d.log)
	}
	return d
}

// open locks the directory, checks what it is and makes what is missing.
func (d *dir) open() (err error) {
	if err := d.fs.MkdirAll(d.root, 0o700); err != nil {
		return fmt.Errorf("make cache directory: %w", err)
	}
	if err := d.checkOurs(); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.lock.Close())
			d.lock = nil
		}
	}()
	if _, err := d.format(d.store.opts.ClusterID); err != nil {
		return err
	}
	for _, sub := range []string{dataDir, heldDir, indexDir} {
		if err := d.fs.MkdirAll(filepath.Join(d.root, sub), 0o700); err != nil {
			return fmt.Errorf("make cache directory: %w", err)
		}
	}
	// ext4 looks for a free inode near the directory of a new file, and on its way
	// at each that was freed in the last minutes: a full cache, which frees one for
	// each that it takes, would look at thousands for every small file.
	if err := d.fs.Spread(filepath.Join(d.root, dataDir)); err != nil {
		d.log.Debug("spreading the cache's directories over the disk", "dir", d.root, "err", err)
	}
	room, err := d.fs.Statfs(d.root)
	if err != nil {
		return err
	}
	fi, err := d.lock.Stat()
	if err != nil {
		return err
	}
	if n, ok := fileNumbers(fi); ok {
		d.device = n.device
	}
	most := min(int64(d.cfg.Capacity), room.Total) // a small disk has a small index, whatever it may take
	d.block = max(room.BlockSize, 512)
	d.leaves.block = d.block
	d.index = indexLog{
		fs: d.fs, dir: filepath.Join(d.root, indexDir), boot: d.store.opts.BootID,
		chunk: roundUp(min(max(most/256, 64<<10), 4<<20), d.block),
	}
	return d.probe()
}

// checkOurs refuses a directory that holds other things than a cache.
func (d *dir) checkOurs() error {
	entries, err := d.fs.ReadDir(d.root)
	if err != nil {
		return fmt.Errorf("read cache directory: %w", err)
	}
	var other string
	for _, e := range entries {
		switch e.Name() {
		case formatFile:
			return nil
		case lockFile, "lost+found", formatFile + tempSuffix:
		default:
			other = e.Name()
		}
	}
	if other == "" {
		return nil
	}
	return errs.E(errs.Invalid, "open cache directory", d.root,
		fmt.Errorf("it is not a cache directory and not empty: it holds %q", other)).
		WithHint("name an empty directory")
}

func (d *dir) takeLock() error {
	name := filepath.Join(d.root, lockFile)
	f, err := d.fs.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open cache directory's lock: %w", err)
	}
	if err := f.Lock(); err != nil {
		holder := "another process"
		pid, readErr := vfs.ReadFile(d.fs, name, 32)
		if n, atoiErr := strconv.Atoi(strings.TrimSpace(string(pid))); readErr == nil && atoiErr == nil && n > 0 {
			holder = fmt.Sprintf("process %d", n)
		}
		closeErr := f.Close()
		if errors.Is(err, vfs.ErrLocked) {
			return errs.E(errs.Busy, "open cache directory", d.root, fmt.Errorf("it is in use by %s", holder))
		}
		return errors.Join(fmt.Errorf("lock cache directory: %w", err), closeErr)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil { // on a full disk the lock holds without a name in it
		d.ioError("write lock file", err)
	}
	d.lock = f
	return nil
}

// format returns the cluster that the directory belongs to, "" if to none. It
// is an error if that is another one than clusterID, or the format another
// release's. A directory without a format gets ours.
func (d *dir) format(clusterID string) (have string, err error) {
	info, err := readFormat(d.fs, d.root)
	if errors.Is(err, fs.ErrNotExist) {
		return "", d.writeFormat("")
	}
	if err != nil {
		return "", err
	}
	if info.Format != formatVersion {
		return "", errs.E(errs.Invalid, "open cache directory", d.root,
			fmt.Errorf("it has format %d, this release reads format %d", info.Format, formatVersion)).
			WithHint("use the release that wrote it, or another directory")
	}
	if clusterID != "" && info.ClusterID != "" && info.ClusterID != clusterID {
		return "", errs.E(errs.Invalid, "open cache directory", d.root,
			fmt.Errorf("it belongs to cluster %s, this one is %s", info.ClusterID, clusterID)).
			WithHint("name another directory, or remove this one's content")
	}
	return info.ClusterID, nil
}

// readFormat reads what a cache directory is. Its error is of kind NotFound
// where it is none yet.
func readFormat(fsys vfs.FS, root string) (info formatInfo, err error) {
	name := filepath.Join(root, formatFile)
	data, err := vfs.ReadFile(fsys, name, 4<<10)
	if err != nil {
		return info, fmt.Errorf("read cache directory's format: %w", err)
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return info, errs.E(errs.Invalid, "open cache directory", name, err)
	}
	return info, nil
}

func (d *dir) writeFormat(clusterID string) error {
	data, err := json.Marshal(formatInfo{Format: formatVersion, ClusterID: clusterID})
	if err != nil {
		return err
	}
	name := filepath.Join(d.root, formatFile)
	if err := vfs.WriteFileAtomic(d.fs, d.root, name+tempSuffix, name, append(data, '\n')); err != nil {
		return fmt.Errorf("write cache directory's format: %w", err)
	}
	return nil
}

// probe finds out what the file system can do.
func (d *dir) probe() (err error) {
	name := filepath.Join(d.root, indexDir, "probe"+tempSuffix)
	f, err := d.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("probe cache directory: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), d.fs.Remove(name)) }()
	d.canLease.Store(!errors.Is(f.Lease(), errors.ErrUnsupported))
	punch := f.PunchHole(0, d.block)
	d.canPunch = punch == nil
	if punch != nil {
		d.log.Info("file system cannot punch holes: large files are evicted as a whole", slog.Any("error", punch))
	}
	return nil
}

// refreshLimits asks the file system how much of it may be taken now.
func (d *dir) refreshLimits() {
	room, err := d.fs.Statfs(d.root)
	if err != nil {
		d.ioError("statfs", err)
		return
	}
	st := d.ledger.state()
	keep := int64(float64(room.Total) * d.cfg.FreeShare)
	limit := min(int64(d.cfg.Capacity), st.used-st.reserved+room.Free-keep)
	inodes := int64(1 << 62)
	if room.TotalInodes > 0 {
		inodes = st.inodes + room.FreeInodes - int64(float64(room.TotalInodes)*d.cfg.FreeShare)
	}
	d.ledger.setLimit(limit, inodes)
}

// pageCost is what a page takes on the disk.
func (d *dir) pageCost(g block.Geometry, page int64) int64 {
	return roundUp(g.Page(page).Length, d.block)
}

// overhead is what a unit takes beside its pages: room for the extents of a
// file that is written in any order.
func (d *dir) overhead(u *unit) int64 {
	first, end := u.unitPages()
	if end-first <= 4 {
		return 0
	}
	return (end - first + 127) / 128 * d.block
}

// charge is what a unit takes on the disk.
func (d *dir) charge(u *unit) int64 {
	n := roundUp(u.cachedBytes(), d.block)
	for _, page := range u.spoiledPages() {
		n += d.pageCost(u.part.geometry(), page)
	}
	if u.state.Load()&unitCharged != 0 {
		n += d.overhead(u)
	}
	return n
}

func (d *dir) status() DirStatus {
	out := DirStatus{Medium: d.cfg.Medium, Dir: d.root, Capacity: int64(d.cfg.Capacity), State: StateOK, Reason: d.failure()}
	switch {
	case d.store.closed.Load():
		out.State = StateClosed
	case out.Reason != nil:
		out.State = StateFailed // of what it has nothing is known
	default:
		st := d.ledger.state()
		out.Limit, out.Used, out.Held = max(st.limit, 0), st.used, st.held
		out.Replicas = d.replicas.bytes()
	}
	return out
}
