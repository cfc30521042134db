// Package config owns how a struct with toml tags is filled from a file, the
// environment and flags, and how it is printed again. It knows nothing of what
// the keys mean: cmd gives it the struct, whose initial values are the
// defaults.
//
// Precedence: flag, environment, file, default. Each key `a.b` is also the
// environment variable PREFIX_A_B; the elements of an array of tables `a.t`
// are PREFIX_A_T_0_KEY and so on. An empty variable is as none.
//
// Invariants:
//   - A key that the struct does not have is a mistake, in the file and in the
//     environment alike.
//   - All mistakes are reported together, those of a file with its line and
//     column, sorted by place.
//   - Every leaf knows where its value came from.
package config
