package ufs_test

import (
	"testing"

	"millrace/ufs"
)

// FuzzParseLimits: limits that are taken are within their bounds.
func FuzzParseLimits(f *testing.F) {
	for _, v := range [][2]string{{"100MiB/s", "50"}, {"1", "NaN"}, {"0", "0"}, {"-1", "-1/s"}, {"1EiB", "1e300"}} {
		f.Add(v[0], v[1])
	}
	f.Fuzz(func(t *testing.T, bandwidth, requests string) {
		l, err := ufs.ParseLimits(map[string]string{ufs.OptionMaxBandwidth: bandwidth, ufs.OptionMaxRequests: requests})
		if err != nil {
			return
		}
		if (l.Bandwidth != 0 && l.Bandwidth < ufs.MinBandwidth) || !(l.Requests >= 0 && l.Requests <= ufs.MaxRequests) {
			t.Errorf("%q, %q: %+v", bandwidth, requests, l)
		}
	})
}
