package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// test names a test, or a package's own output when name is empty.
type test struct{ pkg, name string }

// summary turns events into a report.
type summary struct {
	w      io.Writer
	output map[test][]string // of what has not ended
	skips  []string

	passed, failed, skipped int
}

func newSummary(w io.Writer) *summary {
	return &summary{w: w, output: map[test][]string{}}
}

func (s *summary) readAll(r io.Reader) error { return decode(r, s.add) }

func (s *summary) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(s.w, e.Output)
	case "build-fail":
		s.failed++
	case "output":
		if e.Test == "" && isPackageLine(e.Output) {
			fmt.Fprint(s.w, e.Output)
			return
		}
		s.output[t] = append(s.output[t], e.Output)
	case "pass", "skip", "fail":
		if e.Test == "" {
			s.endPackage(t, e.Action == "fail")
		} else {
			s.endTest(t, e.Action)
		}
	}
}

func (s *summary) endTest(t test, action string) {
	switch action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		s.skips = append(s.skips, fmt.Sprintf("%s %s: %s", t.pkg, t.name, reason(s.output[t])))
	case "fail":
		s.failed++
		s.flush(t)
	}
	delete(s.output, t)
}

// endPackage prints, for a package that failed, what its unfinished tests and
// the package itself wrote: a panic, a data race, a time-out.
func (s *summary) endPackage(p test, failed bool) {
	byName := func(a, b test) int { return cmp.Compare(a.name, b.name) }
	for _, t := range slices.SortedFunc(maps.Keys(s.output), byName) {
		if t.pkg != p.pkg {
			continue
		}
		if failed {
			if t.name != "" {
				s.failed++
			}
			s.flush(t)
		}
		delete(s.output, t)
	}
	// A package may fail without a test that does, as in TestMain.
	if failed && s.failed == 0 {
		s.failed++
	}
}

func (s *summary) flush(t test) {
	for _, line := range s.output[t] {
		fmt.Fprint(s.w, line)
	}
}

func (s *summary) print() {
	slices.Sort(s.skips)
	for _, line := range s.skips {
		fmt.Fprintln(s.w, "SKIP", line)
	}
	fmt.Fprintf(s.w, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
}

// isPackageLine reports whether line is one of go test's lines about a whole
// package.
func isPackageLine(line string) bool {
	for _, prefix := range []string{"ok  \t", "FAIL\t", "?   \t", "---\t"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}

// reason returns why a test was skipped: what it wrote, without the lines of
// the framework.
func reason(output []string) string {
	var words []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		words = append(words, line)
	}
	return strings.Join(words, " ")
}
