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

// The help and docs/ufs.md have every option that under-stores know, but those
// that this release does not offer, and no other.
func TestUFSOptionsAreDocumented(t *testing.T) {
	_, err := underStores().Open(t.Context(), ufs.Config{URI: "s3://bucket", Options: map[string]string{"nonsense": "1"}})
	if err == nil {
		t.Fatal("an unknown option was taken")
	}
	_, list, ok := strings.Cut(err.Error(), "known are ")
	if !ok {
		t.Fatalf("the error names no options: %v", err)
	}
	notOffered := []string{ufs.OptionPlacement, ufs.OptionWholeFileLimit}
	want := slices.DeleteFunc(strings.Split(list, ", "), func(key string) bool { return slices.Contains(notOffered, key) })

	var help []string
	all, s3 := ufsOptions()
	for _, o := range append(all, s3...) {
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
