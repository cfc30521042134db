package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJudge(t *testing.T) {
	exit := errors.New("exit status 1")
	for _, c := range []struct {
		name, output string
		exit         error
		fresh        []string
		late         bool
		fails        bool
	}{
		{name: "good", output: "PASS"},
		{name: "a failing input", output: "Failing input written to testdata/fuzz/FuzzX/0a", exit: exit, fresh: []string{"0a"}, fails: true},
		{name: "an input that failed at the end of the time", output: "context deadline exceeded", exit: exit, fresh: []string{"0a"}, fails: true},
		{name: "an input without an error", output: "PASS", fresh: []string{"0a"}, fails: true},
		{name: "the fuzzer's own end", output: "--- FAIL: FuzzX (5.10s)\n    context deadline exceeded\nFAIL", exit: exit, late: true},
		{name: "a seed that fails", output: "--- FAIL: FuzzX/seed#0", exit: exit, fails: true},
		{name: "a seed that panics at a deadline", output: "panic: context deadline exceeded", exit: exit, fails: true},
		{name: "no build", output: "undefined: x", exit: exit, fails: true},
	} {
		late, err := judge(c.output, c.exit, c.fresh)
		if late != c.late || (err != nil) != c.fails {
			t.Errorf("%s: late %v, %v", c.name, late, err)
		}
	}
}

func TestParseProgress(t *testing.T) {
	got := parseProgress(`fuzz: elapsed: 0s, gathering baseline coverage: 0/9 completed
fuzz: elapsed: 3s, execs: 102 (34/sec), new interesting: 1 (total: 9)
fuzz: elapsed: 6s, execs: 350204 (34000/sec), new interesting: 3 (total: 12)
PASS`)
	want := result{executions: 350204, corpus: 12, found: 3}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(result{})); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if got := parseProgress("FAIL"); got != (result{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestFind(t *testing.T) {
	list, err := find(t.Context(), []string{"millrace/block", "millrace/ufs/..."})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range list {
		got = append(got, x.String())
	}
	for _, want := range []string{"millrace/block FuzzParseTicket", "millrace/ufs FuzzValidPath", "millrace/ufs/s3fs FuzzTag"} {
		if !strings.Contains(strings.Join(got, "\n")+"\n", want+"\n") {
			t.Errorf("%s is not among\n%s", want, strings.Join(got, "\n"))
		}
	}
}

// A corpus takes the smallest inputs, none that is too large, none twice, and
// no more than its bound.
func TestKeep(t *testing.T) {
	cache := t.TempDir()
	x := target{pkg: "p/q", dir: t.TempDir(), name: "FuzzX"}
	write := func(dir, name string, size int) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := x.keep(cache); n != 0 || err != nil {
		t.Fatalf("of an empty cache: %d, %v", n, err)
	}
	from := filepath.Join(cache, "p", "q", "FuzzX")
	write(from, "large", mostBytes+1)
	for i := range mostInputs + 10 {
		write(from, "i"+strconv.Itoa(i), 10+i)
	}
	write(x.corpusDir(), "mine", 1)
	write(x.corpusDir(), "i0", 10)
	n, err := x.keep(cache)
	if err != nil || n != mostInputs-2 {
		t.Errorf("%d were copied, %v, want %d", n, err, mostInputs-2)
	}
	have, err := names(x.corpusDir())
	if err != nil || len(have) != mostInputs {
		t.Errorf("%d inputs, %v, want %d", len(have), err, mostInputs)
	}
	for _, name := range []string{"i" + strconv.Itoa(mostInputs-1), "large"} {
		if _, err := os.Stat(filepath.Join(x.corpusDir(), name)); err == nil {
			t.Errorf("%s was copied", name)
		}
	}
	if n, err := x.keep(cache); n != 0 || err != nil {
		t.Errorf("the second time: %d, %v", n, err)
	}
}
