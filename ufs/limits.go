package ufs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"millrace/internal/errs"
	"millrace/internal/size"
)

// Bounds of the limits: what is below MinBandwidth would rather be no mount at
// all, for a page would take longer than any reader waits.
const (
	MinBandwidth = 16 * size.KiB
	MinRequests  = 0.01
	MaxRequests  = 1e9
)

// Limits bound what one process asks of an under-store mount. The zero Limits
// bound nothing.
type Limits struct {
	// Bandwidth is how many bytes of files may come in a second, all readers
	// together; 0 is no bound. Option max_bandwidth.
	Bandwidth size.Bytes
	// Requests is how many requests may be sent in a second, retries
	// included; 0 is no bound. Option max_requests.
	Requests float64
}

// ParseLimits reads the limits from the options of an under-store mount: a
// size per second, with or without "/s" behind it, and a number per second.
func ParseLimits(options map[string]string) (Limits, error) {
	var l Limits
	var wrong []error
	if v := options[OptionMaxBandwidth]; v != "" {
		n, err := size.ParseBytes(strings.TrimSuffix(v, "/s"))
		if err != nil {
			wrong = append(wrong, fmt.Errorf("option %s: %w", OptionMaxBandwidth, err))
		}
		l.Bandwidth = n
	}
	if v := options[OptionMaxRequests]; v != "" {
		n, err := strconv.ParseFloat(strings.TrimSuffix(v, "/s"), 64)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("option %s: want a number per second, not %q", OptionMaxRequests, v))
		}
		l.Requests = n
	}
	if len(wrong) > 0 {
		return Limits{}, errs.E(errs.Invalid, "", "", errors.Join(wrong...))
	}
	return l, l.Validate()
}

// Validate reports limits that are out of range, each by its option.
func (l Limits) Validate() error {
	var wrong []error
	if l.Bandwidth != 0 && l.Bandwidth < MinBandwidth {
		wrong = append(wrong, fmt.Errorf("option %s: want at least %v a second, or 0 for no limit, not %v", OptionMaxBandwidth, MinBandwidth, l.Bandwidth))
	}
	if l.Requests != 0 && (math.IsNaN(l.Requests) || l.Requests < MinRequests || l.Requests > MaxRequests) {
		wrong = append(wrong, fmt.Errorf("option %s: want %v to %v a second, or 0 for no limit, not %v", OptionMaxRequests, MinRequests, float64(MaxRequests), l.Requests))
	}
	if err := errors.Join(wrong...); err != nil {
		return errs.E(errs.Invalid, "", "", err)
	}
	return nil
}
