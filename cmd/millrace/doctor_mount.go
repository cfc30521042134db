package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"millrace/fuse"
)

// checkMounts looks at the mounts of this host.
func (d *doctor) checkMounts(ctx context.Context) {
	places, err := fuse.Places()
	if err != nil {
		d.problem("mounts", err.Error(), "")
		return
	}
	if len(places) == 0 {
		d.ok("mounts", "there are none on this host")
	}
	for _, p := range places {
		d.checkMount(ctx, p)
	}
}

func (d *doctor) checkMount(ctx context.Context, p fuse.Place) {
	check := "mount " + p.MountPoint
	var st unix.Statfs_t
	if err := unix.Statfs(p.MountPoint, &st); errors.Is(err, unix.ENOTCONN) {
		d.problem(check, "its process is gone", "umount -l "+p.MountPoint+", and mount again")
		return
	} else if err != nil && !errors.Is(err, unix.EACCES) {
		d.problem(check, err.Error(), "look into the mount's log")
		return
	}
	address, ok := d.mountAddress(p)
	if !ok {
		d.warn(check, p.Path+" of the namespace; where its counters are is not known", "name its data directory with --data-dir, or as fuse.data_dir")
		return
	}
	resp, err := get(ctx, "http://"+address+"/metrics")
	if err != nil {
		d.warn(check, "its counters cannot be had: "+err.Error(), "ask on the host and as the user that mounted")
		return
	}
	d.tellOpens(check, p.Path, opensOf(resp.body))
}

// openWay is one way that opens went, and why; labels of
// millrace_fuse_opens_total.
type openWay struct{ mode, reason string }

// opensOf reads the counters of opens from what /metrics says.
func opensOf(metrics string) map[openWay]int64 {
	opens := map[openWay]int64{}
	for line := range strings.Lines(metrics) {
		var w openWay
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "millrace_fuse_opens_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(rest, "} ")
		n, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			continue
		}
		for label := range strings.SplitSeq(labels, ",") {
			switch name, quoted, _ := strings.Cut(label, "="); name {
			case "mode":
				w.mode = strings.Trim(quoted, `"`)
			case "reason":
				w.reason = strings.Trim(quoted, `"`)
			}
		}
		if n > 0 {
			opens[w] += int64(n)
		}
	}
	return opens
}

// tellOpens says how many opens went which way. Those that passthrough could
// have had, but for something that the operator can change, are warned of.
func (d *doctor) tellOpens(check, path string, opens map[openWay]int64) {
	passed := int64(0)
	copied := map[string]int64{}
	for way, n := range opens {
		if way.mode == "passthrough" {
			passed += n
		} else {
			copied[way.reason] += n
		}
	}
	parts := []string{fmt.Sprintf("%s of the namespace; opens: %d by passthrough", path, passed)}
	advice := ""
	for _, reason := range slices.Sorted(maps.Keys(copied)) {
		why, what := copyReason(reason)
		parts = append(parts, fmt.Sprintf("%d copied since %s", copied[reason], why))
		if advice == "" {
			advice = what
		}
	}
	detail := strings.Join(parts, ", ")
	if advice != "" {
		d.warn(check, detail, advice)
		return
	}
	d.ok(check, "%s", detail)
}

// copyReason says what a reason for a copying open means, and what to do where
// something can be done.
func copyReason(reason string) (why, advice string) {
	switch reason {
	case "switched_off":
		return "passthrough is switched off", "mount with -o passthrough=auto"
	case "not_offered":
		return "the kernel does not offer passthrough to it", "see the checks of passthrough and of the cache directories"
	case "no_descriptor":
		return "no worker of this host gave a descriptor", "let the worker give them to the mount's user: worker.descriptor_uids"
	case "not_cached":
		return "they were not wholly cached on this host", ""
	case "not_alone":
		return "their cached file holds more than this version", ""
	case "open_before":
		return "somebody had them open so", ""
	case "empty":
		return "they are empty", ""
	default:
		return reason, ""
	}
}

// mountAddress finds where a mount of this host answers.
func (d *doctor) mountAddress(p fuse.Place) (string, bool) {
	own := url.PathEscape(strings.TrimPrefix(p.MountPoint, "/"))
	for _, dir := range append(slices.Clone(d.dataDirs), d.settings.FUSE.DataDir) {
		if address, ok := addressIn(filepath.Join(dir, own), "mount", "http"); ok {
			return address, true
		}
		// That of an `up` has one mount, which is known by its master.
		if master, ok := addressIn(dir, "master", "grpc"); ok && slices.Contains(p.Masters, master) {
			return addressIn(dir, "mount", "http")
		}
	}
	return "", false
}

// localAddress finds where a role of this host answers: of an `up`, or of a
// process with a data directory of the configuration.
func (d *doctor) localAddress(role, name string) (string, bool) {
	for _, dir := range append(slices.Clone(d.dataDirs), d.settings.Master.DataDir) {
		if address, ok := addressIn(dir, role, name); ok {
			return address, true
		}
	}
	return "", false
}

// addressIn reads an address from a data directory's addresses.json.
func addressIn(dir, role, name string) (string, bool) {
	b, err := os.ReadFile(filepath.Join(dir, "addresses.json"))
	if err != nil {
		return "", false
	}
	var all map[string]map[string]string
	if err := json.Unmarshal(b, &all); err != nil {
		return "", false
	}
	for instance, addresses := range all {
		if strings.HasPrefix(instance, role+"-") && addresses[name] != "" {
			return addresses[name], true
		}
	}
	return "", false
}

// answer is what an HTTP server of ours said.
type answer struct {
	header http.Header
	body   string
}

// get asks an HTTP server of ours.
func get(ctx context.Context, url string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	resp, err := new(http.Client).Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	const most = 16 << 20
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	return answer{resp.Header, string(b)}, err
}
