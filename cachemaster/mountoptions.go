package cachemaster

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"millrace/block"
	"millrace/cachemaster/fsm"
	"millrace/internal/errs"
	"millrace/internal/size"
	"millrace/ufs"
)

// checkPath refuses what is not an absolute, clean path of the namespace.
func checkPath(p string) error {
	switch {
	case len(p) > block.MaxPathLength:
		return errs.E(errs.Invalid, "check path", "", fmt.Errorf("%d bytes, at most %d are allowed", len(p), block.MaxPathLength))
	case p == "" || p[0] != '/' || path.Clean(p) != p || strings.IndexByte(p, 0) >= 0:
		return errs.E(errs.Invalid, "check path", p, errors.New("want an absolute path without empty, . and .. components"))
	}
	return nil
}

// parseMount makes the command that adds an under-store, from what the user
// gave. The keys that only its kind knows are checked when it is opened.
func parseMount(cfg Config, p, uri string, options map[string]string) (*fsm.AddUFS, error) {
	if err := checkPath(p); err != nil {
		return nil, err
	}
	c := &fsm.AddUFS{
		Path: fsm.Path(p), URI: uri, Options: options,
		BlockSize: int64(cfg.BlockSize), Freshness: fsm.FreshTTL, TTLMillis: cfg.FreshnessTTL.Std().Milliseconds(),
	}
	bad := func(key string, err error) error {
		return errs.E(errs.Invalid, "add under-store", p, fmt.Errorf("option %s=%s: %w", key, options[key], err))
	}
	for key, value := range options {
		switch key {
		case ufs.OptionBlockSize:
			n, err := size.ParseBytes(value)
			if err != nil {
				return nil, bad(key, err)
			}
			if err := (block.Geometry{BlockSize: int64(n)}).Validate(); err != nil {
				return nil, bad(key, err)
			}
			c.BlockSize = int64(n)
		case ufs.OptionFreshness:
			c.Freshness = fsm.Freshness(value)
			if err := oneOf(value, string(fsm.FreshTTL), string(fsm.FreshNever), string(fsm.FreshAlways)); err != nil {
				return nil, bad(key, err)
			}
		case ufs.OptionTTL:
			var err error
			if c.TTLMillis, err = parseTTL(value); err != nil {
				return nil, bad(key, err)
			}
		case ufs.OptionVerify: // for the workers
			if err := oneOf(value, ufs.VerifyOnce, ufs.VerifyAlways); err != nil {
				return nil, bad(key, err)
			}
		case ufs.OptionPlacement: // for the clients
			if err := oneOf(value, ufs.PlacementLocal, ufs.PlacementSpread); err != nil {
				return nil, bad(key, err)
			}
		}
	}
	if c.Freshness != fsm.FreshTTL && options[ufs.OptionTTL] != "" {
		return nil, bad(ufs.OptionTTL, fmt.Errorf("it is of freshness %s alone, not of %s", fsm.FreshTTL, c.Freshness))
	}
	return c, nil
}

func oneOf(value string, known ...string) error {
	if slices.Contains(known, value) {
		return nil
	}
	return fmt.Errorf("want one of %s", strings.Join(known, ", "))
}

func parseTTL(value string) (millis int64, err error) {
	d, err := size.ParseDuration(value)
	if err != nil {
		return 0, err
	}
	if d.Std() < time.Millisecond || d.Std() > math.MaxInt32*time.Millisecond {
		return 0, errors.New("want a time from 1ms to 24 days")
	}
	return d.Std().Milliseconds(), nil
}
