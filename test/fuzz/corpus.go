package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What -keep brings into the source of each target: enough that the tests
// reach what the fuzzer did, and little enough to live with.
const (
	mostInputs = 64
	mostBytes  = 4 << 10 // of one input's file
)

// fuzzCache returns where Go keeps the inputs that reached new code.
func fuzzCache(ctx context.Context) (string, error) {
	out, err := goOutput(ctx, "env", "GOCACHE")
	if err != nil {
		return "", err
	}
	return filepath.Join(strings.TrimSpace(string(out)), "fuzz"), nil
}

// keep copies the smallest inputs of the cache into the target's corpus, up
// to its bounds, and returns how many it copied. An input's name is the hash
// of its content, so that one that is there already has its name.
func (t target) keep(cache string) (int, error) {
	have, err := names(t.corpusDir())
	if err != nil {
		return 0, err
	}
	from := filepath.Join(cache, t.pkg, t.name)
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // nothing was found
	} else if err != nil {
		return 0, err
	}
	var list []fs.FileInfo
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return 0, err
		}
		if fi.Mode().IsRegular() && fi.Size() <= mostBytes && !slices.Contains(have, fi.Name()) {
			list = append(list, fi)
		}
	}
	slices.SortFunc(list, func(a, b fs.FileInfo) int {
		return cmp.Or(cmp.Compare(a.Size(), b.Size()), cmp.Compare(a.Name(), b.Name()))
	})
	list = list[:min(len(list), max(0, mostInputs-len(have)))]
	if len(list) == 0 {
		return 0, nil
	}
	if err := os.MkdirAll(t.corpusDir(), 0o755); err != nil {
		return 0, err
	}
	for _, fi := range list {
		b, err := os.ReadFile(filepath.Join(from, fi.Name()))
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(t.corpusDir(), fi.Name()), b, 0o644); err != nil {
			return 0, err
		}
	}
	return len(list), nil
}
