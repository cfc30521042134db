// Package rpcerr is the one place where errors of internal/errs become gRPC
// statuses and come back: a status's code is for generic tooling, the exact
// kind, the leader's address and the hint ride in an api.ErrorDetail.
//
// Servers and clients install the interceptors, so that handlers return and
// callers receive errors of internal/errs and never see a status.
//
// Invariants:
//   - FromStatus(ToStatus(err)) has err's kind, hint and leader.
//   - What did not come from our servers (a broken connection, a deadline) has
//     a kind too: errs.Unavailable, errs.Timeout, and so on.
//   - A status's text is valid UTF-8 of bounded length, whatever bytes the
//     error's paths hold.
package rpcerr
