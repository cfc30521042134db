package ufs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/internal/errs"
)

// The option keys that every kind of under-store mount has. All but the limits
// say how Millrace caches, not how the under-store is reached, so that stores
// ignore them. The limits are those of Limits, which stores obey by package
// ufslimit.
const (
	OptionFreshness    = "freshness"
	OptionTTL          = "ttl"
	OptionPlacement    = "placement"
	OptionBlockSize    = "block_size"
	OptionVerify       = "verify"
	OptionMaxBandwidth = "max_bandwidth" // bytes of files per second
	OptionMaxRequests  = "max_requests"  // requests per second
)

// The values of OptionVerify: what a worker reads from its cache is compared
// with its checksum once in a run of the worker, which is the default, or at
// every read, for which readers are given no descriptors of its files.
const (
	VerifyOnce   = "once"
	VerifyAlways = "always"
)

// The values of OptionPlacement: whether a worker keeps replicas of files that
// another one owns and that programs of its host read, which is the default, or
// every file is on its owner alone.
const (
	PlacementLocal  = "local"
	PlacementSpread = "spread"
)

// GenericOptions returns the keys that every kind of under-store mount has.
func GenericOptions() []string {
	return []string{
		OptionFreshness, OptionTTL, OptionPlacement, OptionBlockSize, OptionVerify,
		OptionMaxBandwidth, OptionMaxRequests,
	}
}

// CheckOptions reports the first key, in byte order, that is neither generic
// nor among known, as errs.Invalid that names it and those that would do; and
// limits that are none.
func CheckOptions(cfg Config, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(cfg.Options)) {
		if slices.Contains(known, key) || slices.Contains(GenericOptions(), key) {
			continue
		}
		all := slices.Sorted(slices.Values(append(GenericOptions(), known...)))
		return errs.E(errs.Invalid, "open under-store", cfg.URI,
			fmt.Errorf("option %q is unknown, known are %s", key, strings.Join(all, ", ")))
	}
	_, err := ParseLimits(cfg.Options)
	return errs.Wrap(err, "open under-store", cfg.URI)
}
