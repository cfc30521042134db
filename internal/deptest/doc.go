// Package deptest holds the import directions of the house, by its tests
// alone: which of our packages each folder may import, and what each program
// and the SDK must not link, however indirectly.
//
// The same table is in .golangci.yml for an editor to show; here it is checked
// against what the go command says, so that a new folder cannot be forgotten.
package deptest
