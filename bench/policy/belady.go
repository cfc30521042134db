package main

import (
	"container/heap"
	"math"
)

// optimum replays a trace against a cache that knows what comes: Belady's
// rule, with the choice not to keep an object at all. It is exact where all
// sizes are equal, and a good guess where they are not.
func optimum(t trace, capacity int64) (o outcome) {
	next := make([]int, len(t.requests))
	last := map[uint32]int{}
	for i := len(t.requests) - 1; i >= 0; i-- {
		r := t.requests[i]
		next[i] = math.MaxInt
		if n, ok := last[r.key]; ok {
			next[i] = n
		}
		last[r.key] = i
	}
	due := map[uint32]int{} // of what is kept
	var h farthest
	var used int64
	for i, r := range t.requests {
		_, hit := due[r.key]
		if i >= t.warm {
			o.add(r, hit)
		}
		if next[i] == math.MaxInt || r.size > capacity {
			if hit {
				delete(due, r.key)
				used -= r.size
			}
			continue
		}
		if !hit {
			used += r.size
		}
		due[r.key] = next[i]
		heap.Push(&h, use{next[i], r})
		for used > capacity {
			u := heap.Pop(&h).(use)
			if due[u.key] == u.at { // not an older note of an object that was used since
				delete(due, u.key)
				used -= u.size
			}
		}
	}
	return o
}

type use struct {
	at int
	request
}

// farthest is a heap with the farthest next use on top.
type farthest []use

func (h *farthest) Len() int           { return len(*h) }
func (h *farthest) Less(i, j int) bool { return (*h)[i].at > (*h)[j].at }
func (h *farthest) Swap(i, j int)      { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }

func (h *farthest) Push(x any) { *h = append(*h, x.(use)) }

func (h *farthest) Pop() any {
	last := len(*h) - 1
	u := (*h)[last]
	*h = (*h)[:last]
	return u
}
