// Package size owns the types of configuration values and flags that are
// amounts: of bytes and of time.
//
// Invariant: the text of a value, read again, is the same value.
package size
