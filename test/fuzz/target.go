package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"millrace/internal/child"
)

// target is one fuzz target of a package.
type target struct {
	pkg, dir, name string
}

func (t target) String() string { return t.pkg + " " + t.name }

// corpusDir holds the inputs that are part of the source: those that every
// run of the tests tries, and where Go leaves one that fails.
func (t target) corpusDir() string { return filepath.Join(t.dir, "testdata", "fuzz", t.name) }

// find lists the targets of the packages that the patterns name.
func find(ctx context.Context, patterns []string) ([]target, error) {
	args := append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns...)
	out, err := goOutput(ctx, args...)
	if err != nil {
		return nil, err
	}
	declared := regexp.MustCompile(`(?m)^func (Fuzz\w*)\(`)
	var list []target
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath   string   `json:"ImportPath"`
			Dir          string   `json:"Dir"`
			TestGoFiles  []string `json:"TestGoFiles"`
			XTestGoFiles []string `json:"XTestGoFiles"`
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
			source, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				return nil, err
			}
			for _, m := range declared.FindAllSubmatch(source, -1) {
				list = append(list, target{pkg: p.ImportPath, dir: p.Dir, name: string(m[1])})
			}
		}
	}
}

func goOutput(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", args[0], err)
	}
	return out, nil
}

// result is what a run of a target did.
type result struct {
	executions int64
	corpus     int  // inputs that reach code of their own
	found      int  // of them, in this run
	late       bool // stopped by the end of its time in the midst of an input
}

const outputKept = 64 << 10

// run fuzzes one target for a time, and fails when the target does.
func (t target) run(ctx context.Context, d time.Duration, parallel int) (result, error) {
	before, err := names(t.corpusDir())
	if err != nil {
		return result{}, err
	}
	// By default up to a minute goes into making each find smaller, which for a
	// slow target is all there is.
	args := []string{
		"test", "-run", "^$", "-fuzz", "^" + t.name + "$",
		"-fuzztime", d.String(), "-fuzzminimizetime", (d / 20).String(),
	}
	if parallel > 0 {
		args = append(args, "-parallel", strconv.Itoa(parallel))
	}
	out := child.NewTail(outputKept)
	cmd := exec.CommandContext(ctx, "go", append(args, t.pkg)...)
	cmd.Stdout, cmd.Stderr = out, out
	// The whole group: go test does not pass on that it is to end.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = leastTime
	p, err := child.Start(cmd)
	if err != nil {
		return result{}, err
	}
	exit := p.Err()
	after, err := names(t.corpusDir())
	if err != nil {
		return result{}, err
	}
	fresh := slices.DeleteFunc(after, func(name string) bool { return slices.Contains(before, name) })
	r := parseProgress(out.String())
	r.late, err = judge(out.String(), exit, fresh)
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", t, err, out)
	}
	return r, err
}

// judge tells a failure of the target from Go's fuzzer running out of its own
// time in the midst of an input, which it reports as one (golang.org/issue/75804).
// fresh are the inputs that the run left as failing.
func judge(output string, exit error, fresh []string) (late bool, err error) {
	switch {
	case exit == nil && len(fresh) == 0:
		return false, nil
	case len(fresh) > 0:
		return false, fmt.Errorf("failing input %s", strings.Join(fresh, ", "))
	case strings.Contains(output, "context deadline exceeded") &&
		!strings.Contains(output, "Failing input written to") && !strings.Contains(output, "panic:"):
		return true, nil
	}
	return false, exit
}

// parseProgress reads the last of the fuzzer's lines
//
//	fuzz: elapsed: 3s, execs: 102 (34/sec), new interesting: 1 (total: 9)
func parseProgress(output string) (r result) {
	line := regexp.MustCompile(`execs: (\d+) .*new interesting: (\d+) \(total: (\d+)\)`)
	all := line.FindAllStringSubmatch(output, -1)
	if len(all) == 0 {
		return r
	}
	last := all[len(all)-1]
	r.executions, _ = strconv.ParseInt(last[1], 10, 64) // digits
	r.found, _ = strconv.Atoi(last[2])
	r.corpus, _ = strconv.Atoi(last[3])
	return r
}

// names lists a directory that need not exist.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list, nil
}
