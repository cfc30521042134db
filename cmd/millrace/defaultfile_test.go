package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files and generated code")

const (
	root        = "../.."
	defaultFile = root + "/etc/millrace.toml"
	docFile     = "keydoc_gen.go"
)

// The documentation of the keys is the comments of the structs, and
// etc/millrace.toml is what `config default` prints.
func TestDefaultFile(t *testing.T) {
	docs := &docReader{t: t, structs: map[string]map[string]*ast.StructType{}, imports: map[string]map[string]string{}, docs: map[string]string{}}
	docs.read("cmd/millrace", "Settings", "")
	golden(t, docFile, docs.source())

	var out bytes.Buffer
	if code := run(t.Context(), []string{"config", "default"}, nil, &out, os.Stderr); code != exitOK {
		t.Fatalf("exit status %d", code)
	}
	golden(t, defaultFile, out.Bytes())

	b, err := os.ReadFile(defaultFile)
	if err != nil {
		t.Fatal(err)
	}
	src := configSources(nil)
	src.File, src.Data = defaultFile, b
	got, _, err := loadSettings(src)
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := loadSettings(configSources(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("the default file changes a default (-want +got)\n%s", cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)))
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s is not what it should be; run with -update twice (-want +got)\n%s", name, d)
	}
}

// docReader collects the comments of configuration structs by key.
type docReader struct {
	t       *testing.T
	structs map[string]map[string]*ast.StructType // by package folder and name
	imports map[string]map[string]string          // by package folder: name to folder
	docs    map[string]string
}

func (d *docReader) load(dir string) {
	if d.structs[dir] != nil {
		return
	}
	d.structs[dir], d.imports[dir] = map[string]*ast.StructType{}, map[string]string{}
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, imp := range f.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				d.t.Fatal(err)
			}
			if folder, ok := strings.CutPrefix(p, "millrace/"); ok {
				d.imports[dir][filepath.Base(folder)] = folder
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if ts, ok := n.(*ast.TypeSpec); ok {
				if st, ok := ts.Type.(*ast.StructType); ok {
					d.structs[dir][ts.Name.Name] = st
				}
			}
			return true
		})
	}
}

// read enters the comments of a struct's fields, and of the structs in it.
func (d *docReader) read(dir, name, path string) {
	d.load(dir)
	st := d.structs[dir][name]
	if st == nil {
		return // not a table: a type of its own that is one value
	}
	last := ""
	for _, f := range st.Fields.List {
		key := ""
		if f.Tag != nil {
			tag, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				d.t.Fatal(err)
			}
			key, _, _ = strings.Cut(reflect.StructTag(tag).Get("toml"), ",")
		}
		if key == "-" {
			continue
		}
		at := path
		if key != "" {
			at = strings.TrimPrefix(path+"."+key, ".")
			text := strings.Join(strings.Fields(f.Doc.Text()+" "+f.Comment.Text()), " ")
			if text == "" {
				text = last // fields that share a comment
			}
			last = text
			if text == "" {
				d.t.Errorf("key %s: field of %s.%s has no comment", at, dir, name)
			}
			for _, n := range f.Names {
				if rest, ok := strings.CutPrefix(text, n.Name+" "); ok {
					text = key + " " + rest
				}
			}
			d.docs[at] = keyNames(st, text)
		} else if len(f.Names) > 0 {
			continue
		}
		switch x := elem(f.Type).(type) {
		case *ast.Ident:
			d.read(dir, x.Name, at)
		case *ast.SelectorExpr:
			if pkg, ok := x.X.(*ast.Ident); ok && d.imports[dir][pkg.Name] != "" {
				d.read(d.imports[dir][pkg.Name], x.Sel.Name, at)
			}
		}
	}
}

// keyNames turns the names of a struct's fields into those of their keys, as
// far as they cannot be taken for a word.
func keyNames(st *ast.StructType, text string) string {
	for _, f := range st.Fields.List {
		for _, n := range f.Names {
			word := n.Name == strings.ToUpper(n.Name) || n.Name[1:] == strings.ToLower(n.Name[1:])
			if f.Tag == nil || word {
				continue
			}
			tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
			text = strings.ReplaceAll(text, n.Name, tag.Get("toml"))
		}
	}
	return text
}

func elem(e ast.Expr) ast.Expr {
	if a, ok := e.(*ast.ArrayType); ok {
		return a.Elt
	}
	return e
}

// source returns the Go file that holds what was collected.
func (d *docReader) source() []byte {
	var b bytes.Buffer
	b.WriteString(`// Code generated from the comments of the configuration structs. DO NOT EDIT.
// go test ./cmd/millrace -run TestDefaultFile -update

package main

func keyDocs() map[string]string {
	return map[string]string{
`)
	for _, k := range slices.Sorted(maps.Keys(d.docs)) {
		fmt.Fprintf(&b, "%q: %q,\n", k, d.docs[k])
	}
	b.WriteString("}\n}\n")
	out, err := format.Source(b.Bytes())
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}
