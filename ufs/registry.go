package ufs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/internal/errs"
)

// Config is what opens an under-store.
type Config struct {
	// URI says the kind and the root: s3://bucket/prefix, file:///dir. What
	// stands behind the scheme is taken byte by byte: nothing is
	// percent-decoded, and "?" and "#" are letters.
	URI string
	// Options are the keys of `--ufs-opt`. Secrets are named in them (a file,
	// an environment variable), never held.
	Options map[string]string
	// Observer is told of every request. It may be nil.
	Observer Observer
}

// Opener opens an under-store of one kind. It asks nothing of the server.
type Opener func(ctx context.Context, cfg Config) (Store, error)

// Registry maps URI schemes to openers. It is filled before it is used and
// not changed after.
type Registry map[string]Opener

// Open opens cfg.URI with the opener of its scheme.
func (r Registry) Open(ctx context.Context, cfg Config) (Store, error) {
	scheme, _, ok := strings.Cut(cfg.URI, "://")
	if !ok || scheme == "" {
		return nil, errs.E(errs.Invalid, "open under-store", cfg.URI, errors.New("want a URI like s3://bucket/prefix"))
	}
	open, ok := r[scheme]
	if !ok {
		known := strings.Join(slices.Sorted(maps.Keys(r)), ", ")
		return nil, errs.E(errs.Unsupported, "open under-store", cfg.URI, fmt.Errorf("scheme %q is unknown, known are %s", scheme, known))
	}
	return open(ctx, cfg)
}
