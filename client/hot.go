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

// spread moves one of those that serve a hot block, which are in the order of
// placement, to the front of list: one of this host, else whoever is drawn, so
// that all readers together ask each of them about as often. One that is not
// the owner is to keep a replica, unless the owner, through which it would have
// to read, is not likely to answer.
func (m *membership) spread(list []member, servers []block.WorkerID, doubtful func(block.WorkerID) bool, here func(*member) bool) []member {
	if list[0].id != servers[0] || list[0].rank(doubtful) > 0 {
		return list
	}
	drawn := servers[rand.IntN(len(servers))]
	if i := slices.IndexFunc(servers, func(id block.WorkerID) bool { w := m.members[id]; return here(&w) }); i >= 0 {
		drawn = servers[i]
	}
	i := slices.IndexFunc(list, func(w member) bool { return w.id == drawn })
	if i <= 0 || list[i].rank(doubtful) > 0 {
		return list
	}
	w := list[i]
	w.replica = true
	return slices.Insert(slices.Delete(list, i, i+1), 0, w)
}
