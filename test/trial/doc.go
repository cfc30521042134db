// Package trial is what the programs share that let everything happen to a
// cluster at once and check that nobody notices: a log that tells what happens
// and counts it, randomness that a seed repeats, and the ways of an S3 server to
// fail.
//
// What happens, and what must hold, is with each program.
package trial
