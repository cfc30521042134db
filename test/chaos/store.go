package main

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"millrace/test/trial"
)

// store is an under-store. Its trouble is odd while it is in any, and rises
// with each change.
type store struct{ trouble atomic.Int64 }

func (s *store) inTrouble() bool { return s.trouble.Load()%2 == 1 }

// troubleStore lets the S3 server fail, or the way there.
func (w *world) troubleStore(ctx context.Context, rng *rand.Rand) error {
	ways := []struct {
		what  string
		mode  mode
		delay time.Duration
	}{{"slow", pass, 20 * time.Millisecond}, {"held up", hold, 0}, {"cut", cut, 0}, {"a black hole", blackHole, 0}}
	failing := func(what string, begin, end func()) fault {
		return func(ctx context.Context, rng *rand.Rand) error {
			w.log.Happen(what)
			w.s3Store.trouble.Add(1)
			begin()
			trial.Sleep(ctx, trial.Between(rng, time.Second, 5*time.Second))
			end()
			w.s3Store.trouble.Add(1)
			return nil
		}
	}
	var faults []fault
	for _, a := range trial.Answers() {
		share := 1 + rng.IntN(3) // one in so many requests
		faults = append(faults, failing("S3: "+a.What, func() { a.Inject(w.proxy, share) }, func() { w.proxy.Inject(nil) }))
	}
	for _, way := range ways {
		faults = append(faults, failing("the way to S3: "+way.what,
			func() { w.link.set(way.mode, way.delay) }, func() { w.link.set(pass, 0) }))
	}
	if w.hdfs != nil {
		faults = append(faults, w.killDataNode, w.killNameNode)
	}
	return w.trouble(ctx, rng, faults)
}
