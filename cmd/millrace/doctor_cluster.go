package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"millrace/client"
	"millrace/internal/size"
)

// The clocks: a ticket may be off by clockLimit; long before that something is
// wrong with the time of a host.
const (
	clockLimit = 5 * time.Minute
	clockWarn  = 10 * time.Second
)

// checkCluster asks the masters for the state of the cluster, and then looks
// whether this host reaches each of its processes.
func (d *doctor) checkCluster(ctx context.Context) {
	const check = "cluster"
	masters := d.settings.Cluster.Masters
	if local, ok := d.localAddress("master", "grpc"); ok && !d.told {
		masters = []string{local}
	}
	st, err := d.status(ctx, masters)
	if err != nil {
		d.problem(check, fmt.Sprintf("masters %v: %v", masters, err),
			"start a master, or say where they are with --masters; from another host they must listen on more than loopback")
		return
	}
	switch {
	case st.Leader == "":
		d.problem(check, "there is no leader", "start the masters that are down: more than half of them must run")
	case !st.Serving:
		d.problem(check, errNotServing.Error(), "start a worker; bind an under-store with ufs add")
	default:
		d.ok(check, "%s serves reads, its leader is %s", st.ClusterID, st.Leader)
	}
	for _, m := range st.Masters {
		d.checkMaster(ctx, m)
	}
	for _, w := range st.Workers {
		d.checkWorker(ctx, w)
	}
}

func (d *doctor) status(ctx context.Context, masters []string) (*client.Status, error) {
	cfg := d.settings.clientConfig(masters)
	cfg.RetryFor = size.Duration(doctorPatience)
	ctx, cancel := context.WithTimeout(ctx, 2*doctorPatience)
	defer cancel()
	c, err := client.Dial(ctx, cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	st, err := c.Status(ctx)
	return st, errors.Join(err, c.Close())
}

func (d *doctor) checkMaster(ctx context.Context, m client.MasterStatus) {
	check := "master " + m.ID
	if err := reach(ctx, m.Address); err != nil {
		d.problem(check, err.Error(), "start it, or let this host through to it")
		return
	}
	d.ok(check, "%s, at %s", m.State, m.Address)
	// Masters do not tell where their HTTP is: on this host addresses.json
	// does, elsewhere it is the port of the configuration, if it is open.
	http, ok := d.localAddress("master", "http")
	if grpc, _ := d.localAddress("master", "grpc"); !ok || grpc != m.Address {
		host, _, err := net.SplitHostPort(m.Address)
		_, port, portErr := net.SplitHostPort(d.settings.Master.HTTPListen)
		if err != nil || portErr != nil || port == "0" {
			return
		}
		http = net.JoinHostPort(host, port)
	}
	d.checkClock(ctx, "clock of master "+m.ID, http)
}

func (d *doctor) checkWorker(ctx context.Context, w client.WorkerStatus) {
	check := "worker " + w.ID
	switch w.State {
	case "live", "draining":
	default:
		d.problem(check, fmt.Sprintf("%s, at %s", w.State, w.Address), "start it; if it is gone for good: millrace workers forget "+w.ID)
		return
	}
	if err := reach(ctx, w.DataAddress); err != nil {
		d.problem(check, fmt.Sprintf("%s, but this host does not reach its data plane: %v", w.State, err), "let this host through to that port, or have the worker listen on more than loopback")
		return
	}
	d.ok(check, "%s, at %s", w.State, w.DataAddress)
	for _, t := range w.Tiers {
		what := fmt.Sprintf("%s of %s used, %s held by readers of dropped files", sizeText(t.UsedBytes), sizeText(t.CapacityBytes), sizeText(t.HeldBytes))
		if t.State == "ok" {
			d.ok(check+" "+t.Dir, "%s", what)
		} else {
			d.problem(check+" "+t.Dir, "the directory is "+t.State, "look into the worker's log for why; replace the disk")
		}
	}
	d.checkClock(ctx, "clock of worker "+w.ID, w.HTTPAddress)
}

// reach connects and hangs up.
func reach(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// checkClock compares this host's clock with that of an HTTP server, which
// tells its time in whole seconds. A server that does not answer is no finding:
// most listen on loopback alone.
func (d *doctor) checkClock(ctx context.Context, check, address string) {
	before := time.Now()
	resp, err := get(ctx, "http://"+address+"/healthz")
	if err != nil {
		return
	}
	there, err := http.ParseTime(resp.header.Get("Date"))
	if err != nil {
		return
	}
	skew := clockSkew(there, before, time.Now())
	detail := strconv.FormatFloat(skew.Seconds(), 'f', 0, 64) + " s before this host's"
	if skew < 0 {
		detail = strconv.FormatFloat(-skew.Seconds(), 'f', 0, 64) + " s behind this host's"
	}
	const advice = "run an NTP client, such as chrony, on both hosts"
	switch {
	case skew.Abs() >= clockLimit:
		d.problem(check, detail+": tickets are refused", advice)
	case skew.Abs() >= clockWarn:
		d.warn(check, detail, advice)
	default:
		d.ok(check, "as this host's")
	}
}

// clockSkew is how far a clock that tells whole seconds is surely ahead of
// ours, or behind it if negative, when it was asked between before and after.
func clockSkew(there, before, after time.Time) time.Duration {
	switch {
	case there.After(after):
		return there.Sub(after)
	case there.Add(time.Second).Before(before):
		return there.Add(time.Second).Sub(before)
	default:
		return 0
	}
}
