package fsm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"millrace/internal/errs"
)

// snapshot is one read transaction: a cut of the file that later writes do
// not touch.
type snapshot struct {
	tx *bbolt.Tx
}

// Snapshot begins a snapshot.
func (s *Store) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	return &snapshot{tx: tx}, nil
}

// Persist streams the file as it was when the snapshot began.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.tx.WriteTo(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release ends the read transaction.
func (s *snapshot) Release() {
	// A read transaction's Rollback fails only if it has ended before.
	_ = s.tx.Rollback()
}

// Restore replaces the file by a snapshot. The new file is complete and
// synced before it takes the place of the old one.
func (s *Store) Restore(r io.ReadCloser) error {
	tmp := s.path + ".restore"
	if err := writeFile(tmp, r); err != nil {
		return errors.Join(fmt.Errorf("restore snapshot: %w", err), remove(tmp))
	}
	db, err := openFile(tmp)
	if err != nil {
		return errors.Join(err, remove(tmp))
	}
	next, err := load(db)
	if err = errors.Join(err, db.Close()); err != nil {
		return errors.Join(errs.Wrap(err, "restore snapshot", tmp), remove(tmp))
	}
	old := s.State()
	if err := s.replace(tmp); err != nil {
		return s.fail(fmt.Errorf("restore snapshot: %w", err))
	}
	s.state.Store(next)
	if s.onChange != nil {
		s.onChange(old, next)
	}
	return nil
}

// replace puts tmp in the place of the file. Closing waits for the end of the
// read transactions, that is, for a snapshot that is being streamed.
func (s *Store) replace(tmp string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return err
	}
	err := os.Rename(tmp, s.path)
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	db, openErr := openFile(s.path)
	if openErr == nil {
		s.db = db
	}
	return errors.Join(err, openErr)
}

func writeFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
