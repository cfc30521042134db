//go:build race

package blockio

// raceEnabled says that the race detector, which makes pools forget, is on.
const raceEnabled = true
