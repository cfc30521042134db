package client

import (
	"fmt"
	"path"
	"time"

	"millrace/api"
	"millrace/block"
	"millrace/internal/errs"
)

// maxValid bounds how long an answer is believed, whatever the master says.
const maxValid = time.Hour

// entryOf checks and converts a master's entry. asked is when the question
// was sent.
func entryOf(e *api.Entry, validMS int64, asked time.Time) (*Entry, error) {
	p := string(e.GetPath())
	if p == "" || p[0] != '/' || path.Clean(p) != p {
		return nil, errs.E(errs.Internal, "", "", fmt.Errorf("a master answered with path %q", p))
	}
	out := &Entry{
		Path: p, Dir: e.GetType() == api.FileType_FILE_TYPE_DIR, Size: e.GetSize(), CachedBytes: e.GetCachedBytes(),
		ValidUntil: validUntil(asked, validMS),
	}
	if ms := e.GetMtimeMs(); ms != 0 {
		out.MTime = time.UnixMilli(ms)
	}
	if out.Dir {
		out.Size = 0
		return out, nil
	}
	if e.GetType() != api.FileType_FILE_TYPE_FILE || len(e.GetFileId()) != len(out.FileID) || out.Size < 0 {
		return nil, errs.E(errs.Internal, "", p, fmt.Errorf("a master's answer is not well formed: type %v, %d bytes of file ID, size %d",
			e.GetType(), len(e.GetFileId()), out.Size))
	}
	out.Tag, out.BlockSize, out.MountID = string(e.GetTag()), e.GetBlockSize(), e.GetMountId()
	out.Spread = e.GetSpread()
	copy(out.FileID[:], e.GetFileId())
	if len(e.GetTicket()) == 0 {
		return out, nil
	}
	t, err := block.ParseTicket(e.GetTicket())
	if err != nil {
		return nil, errs.E(errs.Internal, "", p, err)
	}
	if t.FileID != out.FileID || t.Length != out.Size {
		return nil, errs.E(errs.Internal, "", p, fmt.Errorf("the ticket is for file %s of %d bytes, the entry for %s of %d", t.FileID, t.Length, out.FileID, out.Size))
	}
	out.Ticket = t
	return out, nil
}

// validUntil returns the zero time for an answer that must not be kept.
func validUntil(asked time.Time, ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return asked.Add(time.Duration(min(ms, maxValid.Milliseconds())) * time.Millisecond)
}

func mountOf(m *api.UFSMount) UFSMount {
	options := m.GetOptions()
	if options == nil {
		options = map[string]string{}
	}
	return UFSMount{
		ID: m.GetId(), Path: string(m.GetPath()), URI: m.GetUri(), Options: options,
		BlockSize: m.GetBlockSize(), Freshness: m.GetFreshness(), TTLMillis: m.GetTtlMs(),
	}
}

func mountsOf(m *api.Mounts) []UFSMount {
	out := make([]UFSMount, 0, len(m.GetMounts()))
	for _, x := range m.GetMounts() {
		out = append(out, mountOf(x))
	}
	return out
}

func stateOf(s api.JobState) string {
	switch s {
	case api.JobState_JOB_STATE_PLANNING:
		return JobPlanning
	case api.JobState_JOB_STATE_RUNNING:
		return JobRunning
	case api.JobState_JOB_STATE_SUCCEEDED:
		return JobSucceeded
	case api.JobState_JOB_STATE_FAILED:
		return JobFailed
	case api.JobState_JOB_STATE_CANCELED:
		return JobCanceled
	default:
		return "unknown"
	}
}

func sumsOf(s *api.JobSums) JobSums {
	return JobSums{
		Listed: s.GetListed(), Loaded: s.GetLoaded(), AlreadyCached: s.GetAlreadyCached(),
		Failed: s.GetFailed(), Gone: s.GetGone(),
	}
}

func jobOf(j *api.Job) Job {
	out := Job{
		ID: j.GetId(), State: stateOf(j.GetState()), Paths: make([]string, 0, len(j.GetPaths())),
		Files: sumsOf(j.GetFiles()), Bytes: sumsOf(j.GetBytes()),
		Started: time.UnixMilli(j.GetStartedMs()).UTC(), Error: j.GetError(),
	}
	for _, p := range j.GetPaths() {
		out.Paths = append(out.Paths, string(p))
	}
	if ms := j.GetFinishedMs(); ms != 0 {
		t := time.UnixMilli(ms).UTC()
		out.Finished = &t
	}
	return out
}

func countersOf(c *api.Counters) Counters {
	requests := c.GetUfsRequests()
	if requests == nil {
		requests = map[string]int64{}
	}
	return Counters{
		BytesServed: c.GetBytesServed(), UFSBytesRead: c.GetUfsBytesRead(), UFSListBytes: c.GetUfsListBytes(),
		UFSRequests: requests, PageHits: c.GetPageHits(), PageMisses: c.GetPageMisses(),
		ChecksumErrors: c.GetChecksumErrors(), EvictedBytes: c.GetEvictedBytes(),
		OpensPassthrough: c.GetOpensPassthrough(), OpensCopy: c.GetOpensCopy(),
	}
}

func statusOf(r *api.StatusReply) *Status {
	out := &Status{
		ClusterID: r.GetClusterId(), Leader: r.GetLeader(), Serving: r.GetServing(),
		Masters: make([]MasterStatus, 0, len(r.GetMasters())), Workers: make([]WorkerStatus, 0, len(r.GetWorkers())),
		UFS: mountsOf(r.GetMounts()), Counters: countersOf(r.GetCounters()),
	}
	for _, m := range r.GetMasters() {
		out.Masters = append(out.Masters, MasterStatus{ID: m.GetId(), Address: m.GetAddress(), State: m.GetState()})
	}
	for _, w := range r.GetWorkers() {
		a := w.GetAddresses()
		ws := WorkerStatus{
			ID: w.GetId(), Address: a.GetGrpc(), DataAddress: a.GetData(), HTTPAddress: a.GetHttp(),
			State: w.GetState(), Tiers: make([]TierStatus, 0, len(w.GetTiers())),
		}
		for _, t := range w.GetTiers() {
			ws.Tiers = append(ws.Tiers, TierStatus{
				Medium: t.GetMedium(), Dir: t.GetDir(), CapacityBytes: t.GetCapacityBytes(),
				UsedBytes: t.GetUsedBytes(), HeldBytes: t.GetHeldBytes(), State: t.GetState(),
			})
		}
		out.Workers = append(out.Workers, ws)
	}
	return out
}
