package loadjob

import (
	"fmt"
	"slices"
	"time"

	"millrace/internal/errs"
)

// State is where a load job stands.
type State uint8

// The states of a load job. Planning and Running go on; the others are final.
const (
	Planning  State = iota + 1 // the listing goes on; loading already happens
	Running                    // everything is listed; loading goes on
	Succeeded                  // every listed file was loaded, cached already, or gone
	Failed                     // a file failed, or the listing did
	Canceled                   // a user ended it
)

var stateNames = [...]string{ //nolint:gochecknoglobals // a constant table
	Planning: "planning", Running: "running", Succeeded: "succeeded", Failed: "failed", Canceled: "canceled",
}

// String returns the state's name as it stands in the command line's JSON.
func (s State) String() string {
	if int(s) < len(stateNames) && s != 0 {
		return stateNames[s]
	}
	return "unknown"
}

// MarshalText returns what String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(b []byte) error {
	i := slices.Index(stateNames[1:], string(b))
	if i < 0 {
		return errs.E(errs.Invalid, "parse job state", string(b), nil)
	}
	*s = State(i + 1)
	return nil
}

// Final reports whether a job in this state changes no more.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Canceled }

// Sums count files, or their bytes.
type Sums struct {
	Listed        int64 // seen in the listing
	Loaded        int64 // fetched by the job; a file of which any byte was
	AlreadyCached int64 // found in the cache
	Failed        int64 // could not be fetched or kept
	Gone          int64 // vanished or changed after they were listed
}

// Add returns the sums of s and o.
func (s Sums) Add(o Sums) Sums {
	return Sums{
		Listed:        s.Listed + o.Listed,
		Loaded:        s.Loaded + o.Loaded,
		AlreadyCached: s.AlreadyCached + o.AlreadyCached,
		Failed:        s.Failed + o.Failed,
		Gone:          s.Gone + o.Gone,
	}
}

// Exact reports whether everything listed has been accounted for.
func (s Sums) Exact() bool { return s.Listed == s.Loaded+s.AlreadyCached+s.Failed+s.Gone }

// Cursor is a place in the listing of a job's paths, in order. All files up
// to it are accounted for in the sums that stand beside it.
type Cursor struct {
	PathIndex int    // of the path being listed; len(Job.Paths) at the end
	After     string // namespace path of the last file passed below it; "" for none
}

// Job is one load job: what is committed of it.
type Job struct {
	ID       string
	Paths    []string // of the namespace: absolute and clean
	State    State
	Cursor   Cursor
	Files    Sums
	Bytes    Sums
	Started  time.Time
	Finished time.Time // zero while it goes on
	Error    string    // why it failed, or the first failure so far
}

// Progress is what a leader commits of a job at a time. Its sums are absolute.
type Progress struct {
	Cursor   Cursor
	Files    Sums
	Bytes    Sums
	State    State
	Error    string
	Finished time.Time // set by the committer when State is final
}

// Apply puts p into the job, and reports whether it did: a job in a final
// state changes no more.
func (j *Job) Apply(p Progress) bool {
	if j.State.Final() {
		return false
	}
	j.Cursor, j.Files, j.Bytes = p.Cursor, p.Files, p.Bytes
	j.State, j.Error, j.Finished = p.State, p.Error, p.Finished
	return true
}

// Config bounds a job's bookkeeping on the leader.
type Config struct {
	// Window is how many items and files of one job are held in memory at
	// most: items that are not done, plus files that the cursor has not
	// passed. A file takes about half a kilobyte.
	Window int `toml:"window"`
}

// DefaultConfig returns the defaults: 16,384 items and files, which is 8 MiB
// at most for a job and keeps every worker busy behind one slow file.
func DefaultConfig() Config { return Config{Window: 16384} }

// Validate checks the bounds.
func (c Config) Validate() error {
	if c.Window < 1 {
		return errs.E(errs.Invalid, "", "window", fmt.Errorf("must be at least 1, is %d", c.Window))
	}
	return nil
}
