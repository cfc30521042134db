package trial

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLog(t *testing.T) {
	var out bytes.Buffer
	l := NewLog(&out)
	l.Happen("rain")
	l.Count("snow")
	l.HappenTo("worker-1", "rain")
	l.Say("%d drops", 7)
	l.Sum()
	got := regexp.MustCompile(`(?m)^ +\d+\.\ds`).ReplaceAllString(out.String(), "T")
	want := "T  rain\nT  rain: worker-1\nT  7 drops\ndone:\n      2 x rain\n      1 x snow\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestRandom: a seed repeats every stream, and no two are alike.
func TestRandom(t *testing.T) {
	numbers := func(seed uint64) (list [3]uint64) {
		r := NewRandom(seed)
		for i := range list {
			list[i] = r.Stream().Uint64()
		}
		return list
	}
	a, again, other := numbers(1), numbers(1), numbers(2)
	if a != again || a == other {
		t.Error("the seed does not tell the numbers")
	}
	if a[0] == a[1] || a[1] == a[2] {
		t.Errorf("streams are alike: %v", a)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		if d := Between(rng, 5, 8); d < 5 || d >= 8 {
			t.Fatalf("between 5 and 8: %d", d)
		}
	}
	if !Sleep(t.Context(), time.Nanosecond) {
		t.Error("a sleep was cut off")
	}
}
