package rig

import (
	"fmt"
	"time"
)

// Cost is what one phase took.
type Cost struct {
	Wall   time.Duration
	Daemon time.Duration // CPU of the millrace process
	Client time.Duration // CPU of this process
	Gets   int64         // S3 GET requests for objects, as the server logged them
	Others int64         // all other S3 requests
}

// Rate says how fast a phase went: MiB/s for large objects, files/s for small.
func Rate(d Dataset, wall time.Duration) string {
	if d.Name == "small" {
		return fmt.Sprintf("%.0f files/s", float64(len(d.Objects))/wall.Seconds())
	}
	return fmt.Sprintf("%.0f MiB/s", float64(d.Bytes())/(1<<20)/wall.Seconds())
}
