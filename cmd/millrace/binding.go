package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"millrace/client"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// binding is which under-store a data directory of `up` belongs to, kept in
// up.json so that another URI is refused before anything starts. The truth is
// the mount table of the master; this is its shadow.
type binding struct {
	URI     string            `json:"uri"`
	Options map[string]string `json:"options,omitempty"` // secrets are named in them
	// The sizes that were chosen when nobody said them.
	Cache  size.Bytes `json:"cache_capacity,omitempty"`
	Memory size.Bytes `json:"memory_capacity,omitempty"`
}

func bindingFile(dataDir string) string { return filepath.Join(dataDir, "up.json") }

// readBinding returns nil when there is none.
func readBinding(dataDir string) (*binding, error) {
	name := bindingFile(dataDir)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing is bound yet, which is no failure
	}
	if err != nil {
		return nil, errs.Wrap(err, "read", name)
	}
	var v binding
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, errs.E(errs.Corrupt, "read", name, err)
	}
	return &v, nil
}

func (b binding) write(dataDir string) error {
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return errs.Wrap(err, "encode binding of", dataDir)
	}
	name := bindingFile(dataDir)
	return errs.Wrap(renameio.WriteFile(name, append(text, '\n'), 0o600), "write", name)
}

// fits refuses a data directory that belongs to another URI, and options that
// differ from those it was made with.
func (p *plan) fits(known *binding) error {
	if known == nil {
		return nil
	}
	if known.URI != p.uri {
		return errs.E(errs.Exists, "use data directory", p.dataDir,
			fmt.Errorf("it belongs to %s, not to %s", known.URI, p.uri)).WithHint("choose another with --data-dir")
	}
	if len(p.ufsOptions) > 0 && !maps.Equal(p.ufsOptions, known.Options) {
		return errs.E(errs.Exists, "use data directory", p.dataDir,
			fmt.Errorf("%s is bound with other options (%s)", p.uri, strings.Join(differing(known.Options, p.ufsOptions), ", "))).
			WithHint("leave --ufs-opt out to use those, or choose another --data-dir")
	}
	return nil
}

// effectiveOptions are the options given, or else those of an earlier start.
func (p *plan) effectiveOptions(known *binding) map[string]string {
	if len(p.ufsOptions) == 0 && known != nil {
		return known.Options
	}
	return p.ufsOptions
}

// differing names the keys whose values are not the same.
func differing(a, b map[string]string) []string {
	all := map[string]bool{}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			all[k] = true
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			all[k] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// bind binds the URI at / if it is not, waits until the cluster serves it, and
// has looked at it once through the cluster. news lets the worker know of the
// binding.
func (n *node) bind(ctx context.Context, p *plan, masters []string, news func(context.Context) error) error {
	ctx, release := n.group.Bound(ctx)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	c, err := client.Dial(ctx, n.settings.clientConfig(masters), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	return errors.Join(bindRoot(ctx, c, p, news), c.Close())
}

func bindRoot(ctx context.Context, c *client.Client, p *plan, news func(context.Context) error) error {
	mounts, err := c.ListUFS(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(mounts, func(m client.UFSMount) bool { return m.Path == "/" })
	var bound client.UFSMount
	if i >= 0 {
		bound = mounts[i]
		if err := p.fits(&binding{URI: bound.URI, Options: bound.Options}); err != nil {
			return err
		}
	} else if bound, err = c.AddUFS(ctx, "/", p.uri, p.ufsOptions); err != nil {
		return err
	}
	p.kept.URI, p.kept.Options = bound.URI, bound.Options
	if err := p.kept.write(p.dataDir); err != nil {
		return err
	}
	if err := news(ctx); err != nil {
		return err
	}
	if _, err := waitServing(ctx, c); err != nil {
		return err
	}
	_, err = c.Stat(ctx, "/", client.StatOptions{})
	return err
}
