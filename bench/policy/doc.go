// Command policy replays traces of accesses against eviction policies, and
// prints what share of the requests each one hits at several capacities, as
// tables and, with -json FILE, as JSON.
//
// "millrace" is the code of package tier that orders the victims; LRU, SIEVE
// and S3-FIFO are models as small as they can be; ristretto is the library by
// itself; the optimum is Belady's, which knows what comes. All but ristretto
// depend on nothing but the seed; ristretto forgets a part of its accesses when
// the garbage collector runs, which moves its figures in the third place.
package main
