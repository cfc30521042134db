package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/ufs"
)

// The help and docs/ufs.md have every option that under-stores know, and no
// other.
func TestUFSOptionsAreDocumented(t *testing.T) {
	var known []string
	for _, uri := range []string{"s3://bucket", "hdfs://namenode"} {
		_, err := underStores().Open(t.Context(), ufs.Config{URI: uri, Options: map[string]string{"nonsense": "1"}})
		if err == nil {
			t.Fatalf("%s: an unknown option was taken", uri)
		}
		_, list, ok := strings.Cut(err.Error(), "known are ")
		if !ok {
			t.Fatalf("the error names no options: %v", err)
		}
		known = append(known, strings.Split(list, ", ")...)
	}
	slices.Sort(known)
	want := slices.Compact(known)

	var help []string
	all, s3, hdfs := ufsOptions()
	for _, o := range slices.Concat(all, s3, hdfs) {
		help = append(help, o.key)
	}
	slices.Sort(help)
	if d := cmp.Diff(want, help); d != "" {
		t.Errorf("the help (-known +there)\n%s", d)
	}

	doc, err := os.ReadFile("../../docs/ufs.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)=").FindAllSubmatch(doc, -1) {
		told = append(told, string(m[1]))
	}
	slices.Sort(told)
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("docs/ufs.md (-known +there)\n%s", d)
	}
}
