package client

import (
	"math/rand/v2"
	"slices"
	"time"

	"millrace/api"
	"millrace/block"
)

// maxHotServers bounds the workers among which one is drawn for a block.
const maxHotServers = 256

// hotOf converts what a master said; what makes no sense is left out.
func hotOf(told []*api.HotBlock) map[block.Key]int {
	hot := make(map[block.Key]int, len(told))
	for _, h := range told {
		key := block.Key{Index: h.GetIndex()}
		if len(h.GetFileId()) != len(key.File) || h.GetServers() < 2 {
			continue
		}
		copy(key.File[:], h.GetFileId())
		hot[key] = int(min(h.GetServers(), maxHotServers))
	}
	return hot
}

// servers returns how many workers serve a block: one, unless it is hot.
func (m *membership) servers(k block.Key, length int64) int {
	if len(m.hot) == 0 {
		return 1
	}
	n, ok := m.hot[m.placement.Unit(k, length)]
	if !ok || !time.Now().Before(m.hotUntil) {
		return 1
	}
	return n
}

// spread moves one of those that serve a hot block to the front of list, which
// is of all of them in order: one of this host, else whoever is drawn, so that
// all readers together ask each of them about as often. One that is not the
// owner is to keep a replica, unless the owner, through which it would have to
// read, is not likely to answer.
func (m *membership) spread(list []member, k block.Key, length int64, doubtful func(block.WorkerID) bool) []member {
	order := m.placement.Owners(k, length, m.servers(k, length))
	if len(order) < 2 || len(list) == 0 || list[0].id != order[0] {
		return list
	}
	drawn := order[rand.IntN(len(order))]
	if i := slices.IndexFunc(order, func(id block.WorkerID) bool { return m.members[id].here }); i >= 0 {
		drawn = order[i]
	}
	i := slices.IndexFunc(list, func(w member) bool { return w.id == drawn })
	if i <= 0 || list[i].rank(doubtful) > 0 {
		return list
	}
	w := list[i]
	w.replica = true
	return slices.Insert(slices.Delete(list, i, i+1), 0, w)
}
