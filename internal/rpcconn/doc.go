// Package rpcconn has what all gRPC connections of the control plane have in
// common: those of clients and workers to masters, of masters to workers and to
// each other.
//
// An error comes back as the one that the other end returned (package rpcerr).
// One that does not answer any more is noticed while a call waits for it, and
// one that was away is found some seconds after its return, however long it was
// away.
package rpcconn
