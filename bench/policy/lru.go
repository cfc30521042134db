package main

import "container/list"

// entry is an object that is kept.
type entry struct {
	request
	hits int // that count; up to a bound of the policy's
}

// lru gives up what was not used for the longest time.
type lru struct {
	capacity, used int64
	order          list.List // last used in front
	at             map[uint32]*list.Element
}

func newLRU(capacity int64) *lru { return &lru{capacity: capacity, at: map[uint32]*list.Element{}} }

func (c *lru) access(r request) bool {
	if e := c.at[r.key]; e != nil {
		c.order.MoveToFront(e)
		return true
	}
	if r.size > c.capacity {
		return false
	}
	for c.used+r.size > c.capacity {
		old := c.order.Remove(c.order.Back()).(*entry)
		c.used -= old.size
		delete(c.at, old.key)
	}
	c.at[r.key] = c.order.PushFront(&entry{request: r})
	c.used += r.size
	return false
}
