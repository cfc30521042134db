package deptest_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "millrace"

// rule says what a folder and the folders below it may import of this module,
// besides itself and internal. A name with "/..." means the folders below it
// too.
type rule struct {
	folder  string
	imports []string
	tests   []string // what its tests may import besides
}

// rules are looked up by the longest folder that fits.
func rules() []rule {
	everything := []string{"..."}
	return []rule{
		{folder: "cmd", imports: everything},
		{folder: "bench", imports: everything},
		{folder: "test", imports: everything},
		{folder: "fuse", imports: []string{"client", "block"}},
		{folder: "gateway", imports: []string{"client", "block"}},
		{folder: "client", imports: []string{"api", "blockio", "block"}},
		{folder: "cachemaster", imports: []string{"loadjob", "ufs", "api", "block"}, tests: []string{"ufs/..."}},
		{folder: "cacheworker", imports: []string{"tier", "ufs", "loadjob", "blockio", "api", "block"}, tests: []string{"ufs/..."}},
		{folder: "loadjob", imports: []string{"ufs", "block"}},
		{folder: "tier", imports: []string{"block"}},
		{folder: "ufs", imports: []string{"block"}},
		{folder: "blockio", imports: []string{"block"}},
		{folder: "api"},
		{folder: "block"},
		{folder: "internal"},
		{folder: "internal/rpcerr", imports: []string{"api"}},
		{folder: "internal/testenv", imports: []string{"ufs", "block"}},
	}
}

// testOnly are packages for tests, and the folders whose own code may import
// them all the same.
const (
	testenv = "internal/testenv"
	ufstest = "ufs/ufstest"
)

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath   string   `json:"ImportPath"`
	Imports      []string `json:"Imports"`
	TestImports  []string `json:"TestImports"`
	XTestImports []string `json:"XTestImports"`
}

func goList(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	return out
}

func packages(t *testing.T) []pkg {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(goList(t, "-json=ImportPath,Imports,TestImports,XTestImports", "./..."))))
	var all []pkg
	for {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// below reports whether path is folder or in it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// fits reports whether path is what pattern names.
func fits(path, pattern string) bool {
	if pattern == "..." {
		return true
	}
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return below(path, folder)
	}
	return path == pattern
}

func ruleOf(path string) (rule, bool) {
	var best rule
	for _, r := range rules() {
		if below(path, r.folder) && len(r.folder) > len(best.folder) {
			best = r
		}
	}
	return best, best.folder != ""
}

// own returns path below the module, and whether it is of the module.
func own(path string) (string, bool) { return strings.CutPrefix(path, module+"/") }

// allowed reports whether a package of folder r may import path.
func (r rule) allowed(path string, more []string) bool {
	top, _, _ := strings.Cut(r.folder, "/")
	if below(path, top) || below(path, "internal") {
		return true
	}
	match := func(pattern string) bool { return fits(path, pattern) }
	return slices.ContainsFunc(r.imports, match) || slices.ContainsFunc(more, match)
}

func TestImportDirections(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("go list says %d packages", len(all))
	}
	for _, p := range all {
		path, ok := own(p.ImportPath)
		if !ok {
			t.Errorf("%s is not of module %s", p.ImportPath, module)
			continue
		}
		r, ok := ruleOf(path)
		if !ok {
			t.Errorf("%s is in no rule: add its folder to the table", path)
			continue
		}
		for _, i := range p.Imports {
			target, ok := own(i)
			if !ok {
				continue
			}
			if !r.allowed(target, nil) {
				t.Errorf("%s imports %s", path, target)
			}
			if (target == testenv || target == ufstest) && !below(path, "bench") && !below(path, "test") && path != ufstest && path != testenv {
				t.Errorf("%s imports %s, which is for tests", path, target)
			}
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if target, ok := own(i); ok && !r.allowed(target, r.tests) {
				t.Errorf("the tests of %s import %s", path, target)
			}
		}
	}
}

// TestLinks holds what must not be linked, however indirectly.
func TestLinks(t *testing.T) {
	const (
		raft   = "github.com/hashicorp/raft"
		bbolt  = "go.etcd.io/bbolt"
		aws    = "github.com/aws"
		hdfs   = "github.com/colinmarc/hdfs"
		goFuse = "github.com/hanwen/go-fuse"
	)
	ours := []string{module + "/" + testenv, module + "/" + ufstest}
	helpers := append([]string{"testing"}, ours...)
	for _, tc := range []struct {
		pkg       string
		forbidden []string
	}{
		{"client", slices.Concat(helpers, []string{raft, bbolt, aws, hdfs, goFuse, "millrace/cachemaster", "millrace/cacheworker", "millrace/tier", "millrace/ufs"})},
		{"fuse", slices.Concat(helpers, []string{raft, bbolt, aws, hdfs, "millrace/cachemaster", "millrace/cacheworker", "millrace/tier", "millrace/ufs"})},
		// hashicorp/raft links testing, and with it cachemaster.
		{"cachemaster", slices.Concat(ours, []string{aws, hdfs, goFuse, "millrace/cacheworker", "millrace/tier", "millrace/blockio", "millrace/client"})},
		{"cacheworker", slices.Concat(helpers, []string{raft, bbolt, aws, hdfs, goFuse, "millrace/cachemaster", "millrace/client"})},
		{"loadjob", slices.Concat(helpers, []string{raft, bbolt, aws, hdfs, goFuse, "google.golang.org/grpc"})},
		{"tier", slices.Concat(helpers, []string{raft, bbolt, aws, hdfs, goFuse, "google.golang.org/grpc"})},
		{"block", slices.Concat(helpers, []string{"net", "google.golang.org"})},
		{"cmd/millrace", ours},
	} {
		t.Run(tc.pkg, func(t *testing.T) {
			for d := range strings.FieldsSeq(string(goList(t, "-deps", "./"+tc.pkg))) {
				for _, f := range tc.forbidden {
					if below(d, f) {
						t.Errorf("%s links %s", tc.pkg, d)
					}
				}
			}
		})
	}
}

// TestRules tests the table's own reading.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		want     bool
	}{
		{"cachemaster", "ufs", true},
		{"cachemaster", "ufs/s3fs", false},
		{"cachemaster", "cacheworker", false},
		{"cachemaster/fsm", "cachemaster/blockmap", true},
		{"cacheworker", "cachemaster", false},
		{"client", "block", true},
		{"client", "blockio", true},
		{"block", "blockio", false},
		{"blockio", "block", true},
		{"ufs/s3fs", "ufs", true},
		{"internal/size", "api", false},
		{"internal/rpcerr", "api", true},
		{"internal/rpcerr", "internal/errs", true},
		{"cmd/millrace", "cachemaster", true},
		{"tier", "internal/vfs", true},
	} {
		r, ok := ruleOf(tc.from)
		if !ok {
			t.Errorf("%s is in no rule", tc.from)
		}
		if got := r.allowed(tc.to, nil); got != tc.want {
			t.Errorf("%s may import %s: %v, want %v", tc.from, tc.to, got, tc.want)
		}
	}
	if _, ok := ruleOf("sidecar"); ok {
		t.Error("a folder that is not in the table has a rule")
	}
}
