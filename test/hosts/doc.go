// Package hosts makes machines of processes: each has a network namespace, a
// mount namespace and a boot ID of its own, which make it another machine to all
// others, and hangs on one bridge with them, whose links lose what they are told
// to. It needs root, and is for tests.
//
// All of it is in namespaces of the program's own, in which Main runs it:
// nothing has a name outside, or outlives the program.
package hosts
