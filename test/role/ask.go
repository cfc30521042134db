package role

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// answer bounds the wait for an answer of an HTTP server: a process that is
// paused gives none.
const answer = 2 * time.Second

// Get returns what its HTTP server has at a path.
func (p *Process) Get(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.HTTP+path, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Close = true // the process may end and start again
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s of %s: %s: %s", path, p.Name, resp.Status, strings.TrimSpace(string(text)))
	}
	return string(text), err
}

// Metric returns the sum over all labels of one of its metrics.
func (p *Process) Metric(ctx context.Context, name string) (float64, error) {
	text, err := p.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	sum, err := sumOf(text, name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.Name, err)
	}
	return sum, nil
}

// sumOf adds the values of a metric in Prometheus' text format. It must be
// there.
func sumOf(text, name string) (sum float64, err error) {
	found := false
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		value := strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:])
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

// Addresses returns where a role listens, by the names that addresses.json of
// its data directory gives: "grpc", "http", "raft", "data". It is there soon
// after the start.
func Addresses(dataDir, role string) (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "addresses.json"))
	if err != nil {
		return nil, err
	}
	var roles map[string]map[string]string
	if err := json.Unmarshal(b, &roles); err != nil {
		return nil, fmt.Errorf("addresses.json: %w", err)
	}
	for name, addresses := range roles {
		if strings.HasPrefix(name, role) {
			return addresses, nil
		}
	}
	return nil, fmt.Errorf("addresses.json names no %s: %s", role, b)
}
