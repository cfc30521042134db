// Package ufstest is the suite that every kind of under-store passes: what
// package ufs promises, as tests against a real store.
package ufstest
