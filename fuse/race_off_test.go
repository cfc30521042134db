//go:build !race

package fuse

// raceDetector is 1 where pools forget some of what they are given.
const raceDetector = 0.0
