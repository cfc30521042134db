package fsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"millrace/internal/errs"
)

// The buckets of the file.
const (
	tableMeta    = "meta"
	tableMounts  = "mounts"  // namespace path -> Mount
	tableWorkers = "workers" // worker ID -> Worker
	tableMasters = "masters" // master ID -> Master
	tableJobs    = "jobs"    // job ID -> Job
	tableKeys    = "keys"    // idempotency key -> keyRecord
	tableOrder   = "order"   // log index, big-endian -> idempotency key
)

const (
	metaKey       = "state"
	formatVersion = 1
	// maxKeys bounds the idempotency keys that are remembered; the oldest are
	// forgotten first.
	maxKeys = 4096
	// openTimeout bounds the wait for another process's lock on the file.
	openTimeout = 2 * time.Second
	// mapSize is the address space that the file is mapped into, in bytes:
	// more than the bounded state needs, since a file that outgrows it makes
	// a write wait for the end of a snapshot that is being streamed.
	mapSize = 256 << 20
)

// meta is the part of the state that is no table.
type meta struct {
	Format           int    `json:"format"`
	Index            uint64 `json:"index"`
	Term             uint64 `json:"term"`
	ClusterID        string `json:"cluster_id"`
	MountsVersion    uint64 `json:"mounts_version"`
	LastMountID      uint64 `json:"last_mount_id"`
	InvalidatedIndex uint64 `json:"invalidated_index"`
	PlacementEpoch   uint64 `json:"placement_epoch"`
	WholeFileLimit   int64  `json:"whole_file_limit"`
	JobsIndex        uint64 `json:"jobs_index"`
}

type keyRecord struct {
	Index  uint64 `json:"index"`
	Result Result `json:"result"`
}

// Store is the state machine and its file. It implements raft.BatchingFSM,
// whose methods Raft calls one at a time; State and Failed may be called at
// any time by anyone.
type Store struct {
	path     string
	onChange func(old, next *State)

	mu    sync.RWMutex // held for writing while db is replaced or closed
	db    *bbolt.DB
	state atomic.Pointer[State]

	failOnce sync.Once
	failed   chan struct{}
	failure  error // set before failed is closed
}

var _ raft.BatchingFSM = (*Store)(nil)

// Open opens or creates the file at path. onChange is told, on Raft's
// goroutine, of each new state after it is on disk; it must be fast and may
// be nil.
func Open(path string, onChange func(old, next *State)) (*Store, error) {
	s := &Store{path: path, onChange: onChange, failed: make(chan struct{})}
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	st, err := load(db)
	if err != nil {
		return nil, errors.Join(errs.Wrap(err, "open state machine", path), db.Close())
	}
	s.db = db
	s.state.Store(st)
	return s, nil
}

func openFile(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: openTimeout, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapSize,
	})
	if err != nil {
		return nil, fmt.Errorf("open state machine %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := loadMeta(tx); err != nil {
			return err // before anything is written
		}
		for _, b := range []string{tableMeta, tableMounts, tableWorkers, tableMasters, tableJobs, tableKeys, tableOrder} {
			if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state machine %s: %w", path, err), db.Close())
	}
	return db, nil
}

// State returns the current state.
func (s *Store) State() *State { return s.state.Load() }

// Failed is closed when the machine has stopped for a reason that Err gives.
// It applies nothing more; the process should end.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err returns why the machine stopped, or nil.
func (s *Store) Err() error {
	select {
	case <-s.failed:
		return s.failure
	default:
		return nil
	}
}

// fail stops the machine. The error of all that it is asked from then on is
// errs.Unavailable: the entry is in the log, and the other masters have it.
func (s *Store) fail(err error) error {
	s.failOnce.Do(func() {
		s.failure = errs.E(errs.Unavailable, "", "", err)
		close(s.failed)
	})
	return s.failure
}

// Close closes the file. Raft must have ended.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Close()
}

// Apply applies one entry.
func (s *Store) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies the entries in one transaction. Its answers are of type
// Result, in the entries' order.
func (s *Store) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if err := s.Err(); err != nil {
		return fill(answers, err)
	}
	old := s.State()
	next := old.clone()
	s.mu.RLock()
	defer s.mu.RUnlock()
	err := s.db.Update(func(tx *bbolt.Tx) error {
		w := &txWriter{tx: tx}
		for i, l := range logs {
			var err error
			if answers[i], err = applyLog(next, w, l); err != nil {
				return err
			}
		}
		w.put(tableMeta, metaKey, metaOf(next))
		return w.err
	})
	if err != nil {
		return fill(answers, s.fail(fmt.Errorf("apply log entries %d to %d: %w", logs[0].Index, logs[len(logs)-1].Index, err)))
	}
	s.state.Store(next)
	if s.onChange != nil {
		s.onChange(old, next)
	}
	return answers
}

func fill(answers []any, err error) []any {
	for i := range answers {
		answers[i] = Result{Err: err}
	}
	return answers
}

// applyLog applies one entry to next; its error stops the machine.
func applyLog(next *State, w *txWriter, l *raft.Log) (Result, error) {
	if l.Index <= next.Index {
		return Result{}, nil // replayed: nobody waits for its answer
	}
	next.Index, next.Term = l.Index, l.Term
	if l.Type != raft.LogCommand {
		return Result{}, nil
	}
	c, err := DecodeCommand(l.Data)
	if err != nil {
		return Result{}, fmt.Errorf("entry %d: %w", l.Index, err)
	}
	if c.Key == "" {
		return apply(next, w, l.Index, &c), nil
	}
	if r, ok, err := w.answered(c.scope()); ok || err != nil {
		return r, err
	}
	r := apply(next, w, l.Index, &c)
	if r.Err == nil {
		w.remember(c.scope(), l.Index, r)
	}
	return r, nil
}

func metaOf(s *State) meta {
	return meta{
		Format: formatVersion, Index: s.Index, Term: s.Term, ClusterID: s.ClusterID,
		MountsVersion: s.MountsVersion, LastMountID: s.LastMountID, InvalidatedIndex: s.InvalidatedIndex,
		PlacementEpoch: s.PlacementEpoch, WholeFileLimit: s.WholeFileLimit, JobsIndex: s.JobsIndex,
	}
}

// txWriter writes records in one transaction and keeps the first error.
type txWriter struct {
	tx  *bbolt.Tx
	err error
}

func (w *txWriter) put(table, key string, v any) {
	if w.err != nil {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = w.tx.Bucket([]byte(table)).Put([]byte(key), b)
	}
	w.err = err
}

func (w *txWriter) remove(table, key string) {
	if w.err == nil {
		w.err = w.tx.Bucket([]byte(table)).Delete([]byte(key))
	}
}

func (w *txWriter) answered(key string) (Result, bool, error) {
	b := w.tx.Bucket([]byte(tableKeys)).Get([]byte(key))
	if b == nil {
		return Result{}, false, nil
	}
	var r keyRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return Result{}, false, fmt.Errorf("idempotency key %q: %w", key, err)
	}
	return r.Result, true, nil
}

// remember keeps the answer to key and forgets the oldest above maxKeys.
func (w *txWriter) remember(key string, index uint64, r Result) {
	w.put(tableKeys, key, keyRecord{Index: index, Result: r})
	order := w.tx.Bucket([]byte(tableOrder))
	if w.err != nil {
		return
	}
	if w.err = order.Put(binary.BigEndian.AppendUint64(nil, index), []byte(key)); w.err != nil {
		return
	}
	// One key is added at a time, so at most one is too many. The sequence of
	// the bucket counts those that are there.
	n := order.Sequence() + 1
	if n > maxKeys {
		c := order.Cursor()
		if k, oldest := c.First(); k != nil {
			w.remove(tableKeys, string(oldest))
			if w.err == nil {
				w.err = c.Delete()
			}
			n--
		}
	}
	if w.err == nil {
		w.err = order.SetSequence(n)
	}
}

// load reads the state out of the file.
func load(db *bbolt.DB) (*State, error) {
	s := emptyState()
	err := db.View(func(tx *bbolt.Tx) error {
		m, err := loadMeta(tx)
		if err != nil {
			return err
		}
		s.Index, s.Term, s.ClusterID = m.Index, m.Term, m.ClusterID
		s.MountsVersion, s.LastMountID, s.InvalidatedIndex = m.MountsVersion, m.LastMountID, m.InvalidatedIndex
		s.PlacementEpoch, s.WholeFileLimit, s.JobsIndex = m.PlacementEpoch, m.WholeFileLimit, m.JobsIndex
		return errors.Join(
			each(tx, tableMounts, func(m Mount) { s.Mounts = append(s.Mounts, m) }),
			each(tx, tableWorkers, func(w Worker) { s.Workers[w.ID] = w }),
			each(tx, tableMasters, func(m Master) { s.Masters[m.ID] = m }),
			each(tx, tableJobs, func(j Job) { s.Jobs[j.ID] = j }),
		)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// loadMeta returns the meta record, the zero one of a new file, and refuses a
// format that is not ours.
func loadMeta(tx *bbolt.Tx) (m meta, err error) {
	bucket := tx.Bucket([]byte(tableMeta))
	if bucket == nil {
		return m, nil
	}
	b := bucket.Get([]byte(metaKey))
	if b == nil {
		return m, nil
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%s: %w", tableMeta, err)
	}
	if m.Format != formatVersion {
		return m, errs.E(errs.Invalid, "", "", fmt.Errorf("it has format %d, this release reads format %d", m.Format, formatVersion)).
			WithHint("use the release that wrote it, or another data directory")
	}
	return m, nil
}

// each calls f for each record of a table, in the order of the keys.
func each[V any](tx *bbolt.Tx, table string, f func(V)) error {
	return tx.Bucket([]byte(table)).ForEach(func(k, b []byte) error {
		var v V
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("%s %q: %w", table, k, err)
		}
		f(v)
		return nil
	})
}
