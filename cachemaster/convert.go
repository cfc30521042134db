package cachemaster

import (
	"maps"
	"time"

	"millrace/api"
	"millrace/cachemaster/fsm"
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

// entry describes f to clients.
func (n *namespace) entry(f *file, withTicket bool) (*api.Entry, error) {
	e := &api.Entry{Path: []byte(f.path), Type: api.FileType_FILE_TYPE_DIR, MtimeMs: millis(f.info.MTime), MountId: f.mount.ID}
	if f.info.Type == ufs.Dir {
		return e, nil
	}
	t, err := n.ticket(f)
	if err != nil {
		return nil, err
	}
	e.Type = api.FileType_FILE_TYPE_FILE
	e.Size = f.info.Size
	e.Tag = []byte(f.info.Tag)
	e.FileId = t.FileID[:]
	e.BlockSize = t.BlockSize
	if withTicket {
		if e.Ticket, err = t.AppendBinary(nil); err != nil {
			return nil, err
		}
	}
	return e, nil
}
