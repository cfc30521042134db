// Package testenv gives tests, the demo and the benchmarks what they need of
// the world outside: a real S3 server and a real HDFS on loopback, a proxy
// before the former that counts requests and injects faults, and a loud word when something that a
// test needs is missing.
//
// It knows nothing of Millrace's own packages, so that any of them may use it
// in tests.
//
// Invariants:
//   - Every process it starts is stopped by its ID, also when the process that
//     started it is killed.
//   - Ports are chosen by the kernel; two test runs never meet.
//   - A missing need is a skip that names what is missing, or a failure when
//     the environment variable MILLRACE_REQUIRE names the need.
package testenv
