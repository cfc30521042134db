package tier

import "millrace/block"

// Touch counts a file that was used through a descriptor as hit. One that is
// not cached is ignored; how often it was used makes no difference to the
// policy, which remembers whether a file was hit since it last looked.
func (s *Store) Touch(id block.FileID, n int) {
	p := s.lookup(id)
	if p == nil || n <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.has(partDead) {
		p.all(s.dirOf(p).queue.touch)
	}
}
