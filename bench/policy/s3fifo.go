package main

// s3fifo is S3-FIFO (Yang et al., SOSP 2023): a small queue of a tenth of the
// capacity through which new objects must pass, a main queue, and a ghost
// queue of the keys that the small one gave up, as many as the main one holds
// objects. All three are in order of arrival.
type s3fifo struct {
	capacity    int64
	small, main queue
	at          map[uint32]*entry
	ghost       []uint32       // oldest first; may have keys that are ghosts no more
	ghosts      map[uint32]int // how often a key is in ghost
}

// queue is in order of arrival.
type queue struct {
	list  []*entry
	bytes int64
}

func (q *queue) push(e *entry) {
	q.list = append(q.list, e)
	q.bytes += e.size
}

func (q *queue) pop() *entry {
	e := q.list[0]
	q.list = q.list[1:]
	q.bytes -= e.size
	return e
}

// maxHits is how many hits of an object count.
const maxHits = 3

func newS3FIFO(capacity int64) *s3fifo {
	return &s3fifo{capacity: capacity, at: map[uint32]*entry{}, ghosts: map[uint32]int{}}
}

func (c *s3fifo) access(r request) bool {
	if e := c.at[r.key]; e != nil {
		e.hits = min(e.hits+1, maxHits)
		return true
	}
	if r.size > c.capacity {
		return false
	}
	for c.small.bytes+c.main.bytes+r.size > c.capacity {
		c.evict()
	}
	e := &entry{request: r}
	c.at[r.key] = e
	if c.ghosts[r.key] > 0 {
		c.main.push(e)
	} else {
		c.small.push(e)
	}
	return false
}

// evict gives up one object, or moves objects from the small queue to the
// main one.
func (c *s3fifo) evict() {
	if c.small.bytes > 0 && c.small.bytes >= c.capacity/10 || len(c.main.list) == 0 {
		c.evictSmall()
		return
	}
	for {
		e := c.main.pop()
		if e.hits == 0 {
			delete(c.at, e.key)
			return
		}
		e.hits--
		c.main.push(e)
	}
}

func (c *s3fifo) evictSmall() {
	for len(c.small.list) > 0 {
		e := c.small.pop()
		if e.hits > 1 {
			e.hits = 0
			c.main.push(e)
			continue
		}
		delete(c.at, e.key)
		c.remember(e.key)
		return
	}
}

// remember makes a ghost of key.
func (c *s3fifo) remember(key uint32) {
	c.ghost = append(c.ghost, key)
	c.ghosts[key]++
	for len(c.ghost) > max(len(c.main.list), 1) {
		old := c.ghost[0]
		c.ghost = c.ghost[1:]
		if c.ghosts[old]--; c.ghosts[old] == 0 {
			delete(c.ghosts, old)
		}
	}
}
