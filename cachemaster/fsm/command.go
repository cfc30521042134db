package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"millrace/internal/errs"
)

// CommandVersion is the version of the envelope that this release writes.
const CommandVersion = 1

// MaxCommandSize bounds an encoded command, in bytes.
const MaxCommandSize = 4 << 20

// maxKeyLength bounds an idempotency key, in bytes.
const maxKeyLength = 128

// Command is one entry of the replicated log. Exactly one of the pointers is
// set. Everything that differs from machine to machine or from moment to
// moment, such as times and random IDs, was drawn by the leader that proposed
// it.
type Command struct {
	Version int `json:"v"`
	// Key makes a repeated command harmless: the answer to the first one that
	// succeeded is the answer to all. Empty: none.
	Key string `json:"key,omitempty"`

	Bootstrap      *Bootstrap      `json:"bootstrap,omitempty"`
	RegisterMaster *Master         `json:"register_master,omitempty"`
	RemoveMaster   *RemoveMaster   `json:"remove_master,omitempty"`
	AddUFS         *AddUFS         `json:"add_ufs,omitempty"`
	RemoveUFS      *RemoveUFS      `json:"remove_ufs,omitempty"`
	RegisterWorker *RegisterWorker `json:"register_worker,omitempty"`
	DrainWorker    *DrainWorker    `json:"drain_worker,omitempty"`
	ForgetWorker   *ForgetWorker   `json:"forget_worker,omitempty"`
	SubmitJob      *SubmitJob      `json:"submit_job,omitempty"`
	ProgressJob    *ProgressJob    `json:"progress_job,omitempty"`
}

// Bootstrap gives the cluster its ID. Only the first one counts.
type Bootstrap struct {
	ClusterID string `json:"cluster_id"`
}

// RemoveMaster forgets a master that was taken out of the group.
type RemoveMaster struct {
	ID string `json:"id"`
}

// AddUFS binds an under-store to a path.
type AddUFS struct {
	Path      Path              `json:"path"`
	URI       string            `json:"uri"`
	Options   map[string]string `json:"options,omitempty"`
	BlockSize int64             `json:"block_size"`
	Freshness Freshness         `json:"freshness"`
	TTLMillis int64             `json:"ttl_ms"`
}

// RemoveUFS unbinds the under-store at a path.
type RemoveUFS struct {
	Path Path `json:"path"`
}

// RegisterWorker enters a worker in the registry, or updates it.
type RegisterWorker struct {
	Worker Worker `json:"worker"`
	// WholeFileLimit overrides the limit that follows from the workers'
	// directories, in bytes; 0 does not.
	WholeFileLimit int64 `json:"whole_file_limit,omitempty"`
}

// DrainWorker makes a worker own no blocks any more, or, with Draining false,
// its share again.
type DrainWorker struct {
	ID             string `json:"id"`
	Draining       bool   `json:"draining"`
	WholeFileLimit int64  `json:"whole_file_limit,omitempty"` // as in RegisterWorker
}

// ForgetWorker takes a worker off the registry.
type ForgetWorker struct {
	ID             string `json:"id"`
	WholeFileLimit int64  `json:"whole_file_limit,omitempty"` // as in RegisterWorker
}

// SubmitJob enters a load job.
type SubmitJob struct {
	ID            string `json:"id"`
	Paths         []Path `json:"paths"`
	StartedMillis int64  `json:"started_ms"`
}

// ProgressJob moves a load job on.
type ProgressJob struct {
	ID             string `json:"id"`
	State          string `json:"state"`
	Cursor         Cursor `json:"cursor"`
	Files          Sums   `json:"files"`
	Bytes          Sums   `json:"bytes"`
	Error          string `json:"error,omitempty"`
	FinishedMillis int64  `json:"finished_ms,omitempty"`
}

// Encode returns the log entry of c. It sets the version, and fails for a
// command that no machine would accept.
func (c Command) Encode() ([]byte, error) {
	c.Version = CommandVersion
	if err := c.validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if len(b) > MaxCommandSize {
		return nil, errs.E(errs.Invalid, "encode command", "", fmt.Errorf("%d bytes, at most %d are allowed", len(b), MaxCommandSize))
	}
	return b, nil
}

// DecodeCommand reads what Encode wrote. An unknown version, an unknown field
// or a command that is not there is an error: an older release must not apply
// half of what a newer one meant.
func DecodeCommand(b []byte) (Command, error) {
	if len(b) > MaxCommandSize {
		return Command{}, fmt.Errorf("decode command: %d bytes are too many", len(b))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c Command
	if err := d.Decode(&c); err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	if d.More() {
		return Command{}, errors.New("decode command: bytes behind it")
	}
	if c.Version != CommandVersion {
		return Command{}, fmt.Errorf("decode command: version %d is unknown", c.Version)
	}
	return c, c.validate()
}

func (c Command) validate() error {
	n := 0
	for _, set := range []bool{
		c.Bootstrap != nil, c.RegisterMaster != nil, c.RemoveMaster != nil, c.AddUFS != nil, c.RemoveUFS != nil,
		c.RegisterWorker != nil, c.DrainWorker != nil, c.ForgetWorker != nil, c.SubmitJob != nil, c.ProgressJob != nil,
	} {
		if set {
			n++
		}
	}
	if n != 1 {
		return errs.E(errs.Internal, "check command", "", fmt.Errorf("%d commands in one envelope", n))
	}
	if len(c.Key) > maxKeyLength {
		return errs.E(errs.Invalid, "check command", "", fmt.Errorf("idempotency key of %d bytes, at most %d are allowed", len(c.Key), maxKeyLength))
	}
	return nil
}

// scope returns the idempotency key with the kind of the command before it,
// so that one key used for two things is two keys.
func (c Command) scope() string {
	switch {
	case c.AddUFS != nil:
		return "add_ufs/" + c.Key
	case c.RemoveUFS != nil:
		return "remove_ufs/" + c.Key
	case c.SubmitJob != nil:
		return "submit_job/" + c.Key
	default:
		return "other/" + c.Key
	}
}
