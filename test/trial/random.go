package trial

import (
	"context"
	"math/rand/v2"
	"time"

	"millrace/internal/wait"
)

// Random gives out streams of random numbers that a seed repeats. Each who
// decides has one, so that no decision depends on who is first. It is for one
// goroutine; so is each stream.
type Random struct{ seed, last uint64 }

// NewRandom begins anew.
func NewRandom(seed uint64) *Random { return &Random{seed: seed} }

// Stream returns the next stream.
func (r *Random) Stream() *rand.Rand {
	r.last++
	return rand.New(rand.NewPCG(r.seed, r.last))
}

// Between returns a time of at least least and less than most.
func Between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

// Sleep returns false when ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool { return wait.For(ctx, d) == nil }
