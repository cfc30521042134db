package cachemaster

import (
	"maps"
	"time"

	"millrace/api"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/ufs"
)

func mountProto(m *fsm.Mount) *api.UFSMount {
	return &api.UFSMount{
		Id: m.ID, Path: []byte(m.Path), Uri: m.URI, Options: maps.Clone(m.Options), BlockSize: m.BlockSize,
		Freshness: string(m.Freshness), TtlMs: m.TTLMillis,
	}
}

func mountsProto(st *fsm.State) *api.Mounts {
	t := &api.Mounts{Version: st.MountsVersion}
	for i := range st.Mounts {
		t.Mounts = append(t.Mounts, mountProto(&st.Mounts[i]))
	}
	return t
}

func placementProto(st *fsm.State) *api.Placement {
	p := st.Placement()
	t := &api.Placement{Epoch: p.Epoch, WholeFileLimit: p.WholeFileLimit}
	for _, w := range p.Workers {
		t.Workers = append(t.Workers, &api.PlacedWorker{Id: string(w.ID), Weight: w.Weight})
	}
	return t
}

func addressesProto(a fsm.Addresses) *api.WorkerAddresses {
	return &api.WorkerAddresses{Grpc: a.GRPC, Data: a.Data, Http: a.HTTP, UnixSocket: a.UnixSocket, BootId: a.BootID}
}

func addressesOf(a *api.WorkerAddresses) fsm.Addresses {
	return fsm.Addresses{GRPC: a.GetGrpc(), Data: a.GetData(), HTTP: a.GetHttp(), UnixSocket: a.GetUnixSocket(), BootID: a.GetBootId()}
}

// millis returns t in Unix milliseconds; 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// ofMillis is the reverse of millis.
func ofMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// entry describes f to clients. The bytes of all its fields are in one array.
func (n *namespace) entry(f *file, withTicket bool) (*api.Entry, error) {
	e := &api.Entry{Type: api.FileType_FILE_TYPE_DIR, MtimeMs: millis(f.info.MTime), MountId: f.mount.ID}
	if f.info.Type == ufs.Dir {
		e.Path = []byte(f.path)
		return e, nil
	}
	t := n.ticket(f)
	b := make([]byte, 0, len(f.path)+2*len(t.Tag)+len(t.FileID)+ticketOverhead+len(t.Path))
	b, e.Path = field(b, append(b, f.path...))
	b, e.Tag = field(b, append(b, f.info.Tag...))
	b, e.FileId = field(b, append(b, t.FileID[:]...))
	encoded, err := t.AppendBinary(b) // it checks the bounds too
	if err != nil {
		return nil, errs.E(errs.Invalid, "issue ticket", f.path, err)
	}
	e.Type = api.FileType_FILE_TYPE_FILE
	e.Spread = f.mount.Options[ufs.OptionPlacement] == ufs.PlacementSpread
	e.Size = f.info.Size
	e.BlockSize = t.BlockSize
	if withTicket {
		_, e.Ticket = field(b, encoded)
	}
	return e, nil
}

// ticketOverhead is what an encoded ticket without a signature takes beside
// its path and tag, in bytes.
const ticketOverhead = 72

// field returns what longer has beyond b, so that appending to it touches
// nothing behind it.
func field(b, longer []byte) (all, added []byte) {
	return longer, longer[len(b):len(longer):len(longer)]
}
