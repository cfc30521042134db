package main

import "container/list"

// sieve is SIEVE (Zhang et al., NSDI 2024): a queue in order of arrival, a bit
// that a hit sets, and a hand that goes from the oldest to the newest, clears
// the bits that it finds and takes the first object that has none.
type sieve struct {
	capacity, used int64
	order          list.List // newest in front
	hand           *list.Element
	at             map[uint32]*list.Element
}

func newSieve(capacity int64) *sieve {
	return &sieve{capacity: capacity, at: map[uint32]*list.Element{}}
}

func (c *sieve) access(r request) bool {
	if e := c.at[r.key]; e != nil {
		e.Value.(*entry).hits = 1
		return true
	}
	if r.size > c.capacity {
		return false
	}
	for c.used+r.size > c.capacity {
		c.evict()
	}
	c.at[r.key] = c.order.PushFront(&entry{request: r})
	c.used += r.size
	return false
}

func (c *sieve) evict() {
	for {
		e := c.hand
		if e == nil {
			e = c.order.Back()
		}
		c.hand = e.Prev()
		if o := e.Value.(*entry); o.hits > 0 {
			o.hits = 0
			continue
		}
		old := c.order.Remove(e).(*entry)
		c.used -= old.size
		delete(c.at, old.key)
		return
	}
}
