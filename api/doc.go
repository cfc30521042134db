// Package api is the control plane's protobuf messages and the gRPC code that
// is generated from them (`make proto`), nothing else.
//
// Paths, tags and file IDs are bytes: object keys need not be UTF-8. Paths of
// the namespace are absolute and clean ("/a/b"); paths within an under-store
// mount have no leading slash. Times are Unix milliseconds, durations
// milliseconds, sizes bytes.
//
// Invariants: field numbers and enum values are never changed or reused.
package api
