package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Sources are where values come from. Zero fields have none.
type Sources struct {
	File    string            // the file's name, for messages
	Data    []byte            // its content
	Prefix  string            // of environment variables, without the last underscore
	Environ []string          // name=value
	Aliases map[string]string // more environment variables: name to path
	Flags   map[string]Flag   // by path
	// Elements holds, by path, what a new element of an array of tables
	// starts from.
	Elements map[string]any
}

// Flag is a value given on the command line.
type Flag struct {
	Name string // "--listen"
	Text string
}

// Mistake is one thing that is wrong, and where.
type Mistake struct {
	File         string // empty: not in a file
	Line, Column int    // from 1
	Key          string // path, or the variable's or flag's name
	Text         string
}

// Error returns "file:line:column: key: text", without what is not known.
func (m Mistake) Error() string {
	s := m.Key
	if s != "" && m.Text != "" {
		s += ": "
	}
	s += m.Text
	if m.File == "" {
		return s
	}
	return fmt.Sprintf("%s:%d:%d: %s", m.File, m.Line, m.Column, s)
}

// Loaded is a filled configuration.
type Loaded struct {
	src      Sources
	root     reflect.Value
	origins  map[string]string // by leaf path
	places   map[string]unstable.Position
	mistakes []Mistake
}

// Load fills dst, a pointer to a struct that holds the defaults. The error
// joins all mistakes, each a Mistake; the rest is filled nevertheless.
func Load(dst any, src Sources) (*Loaded, error) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil, errNotStruct
	}
	l := &Loaded{src: src, root: v.Elem(), origins: map[string]string{}, places: map[string]unstable.Position{}}
	l.file()
	l.environment()
	l.flags()
	return l, l.err()
}

// Check enters the mistakes of a validation, whose lines begin with the path of
// the key they are about, and returns all there are.
func (l *Loaded) Check(err error) error {
	if err == nil {
		return l.err()
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		end := max(strings.IndexAny(line, ": "), 0)
		l.mistake(line[:end], line)
		m := &l.mistakes[len(l.mistakes)-1]
		m.Key = "" // the line says it
	}
	return l.err()
}

func (l *Loaded) err() error {
	slices.SortStableFunc(l.mistakes, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var list []error
	for _, m := range slices.Compact(l.mistakes) {
		list = append(list, m)
	}
	return errors.Join(list...)
}

// mistake enters one about a path, at its place in the file if it has one and
// nothing later than the file set the key.
func (l *Loaded) mistake(path, text string) {
	m := Mistake{Key: path, Text: text}
	o := l.origins[path]
	if p, ok := l.places[path]; ok && (o == "" || strings.HasPrefix(o, "file ")) {
		m.File, m.Line, m.Column = l.src.File, p.Line, p.Column
	} else if o != "" {
		m.Text += " (from " + o + ")"
	}
	l.mistakes = append(l.mistakes, m)
}

// Keys returns all leaves in the order of the struct.
func (l *Loaded) Keys() []Key {
	var list []Key
	leaves(l.root, "", func(path string, v reflect.Value) {
		o := l.origins[path]
		if o == "" {
			o = "default"
		}
		list = append(list, Key{Path: path, Env: envName(l.src.Prefix, path), Origin: o, value: v})
	})
	return list
}

// Origin returns where the value of a path came from: "" for a default.
func (l *Loaded) Origin(path string) string { return l.origins[path] }

// Literal returns the key's value as TOML.
func (k Key) Literal() string { return literal(k.value) }

// Value returns the key's value.
func (k Key) Value() any { return k.value.Interface() }

func (l *Loaded) file() {
	if len(l.src.Data) == 0 {
		return
	}
	var doc map[string]any
	if err := toml.Unmarshal(l.src.Data, &doc); err != nil {
		m := Mistake{File: l.src.File, Line: 1, Column: 1, Text: strings.TrimPrefix(err.Error(), "toml: ")}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			m.Line, m.Column = de.Position()
			m.Key = strings.Join(de.Key(), ".")
		}
		l.mistakes = append(l.mistakes, m)
		return
	}
	l.locate()
	l.table(l.root, "", doc)
}

// locate enters where each key and table stands.
func (l *Loaded) locate() {
	var p unstable.Parser
	p.Reset(l.src.Data)
	counts := map[string]int{}
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind { //nolint:exhaustive // only these are expressions
		case unstable.Table:
			prefix = l.keyPath(&p, "", e, counts)
		case unstable.ArrayTable:
			path := l.keyPath(&p, "", e, counts)
			counts[path]++
			prefix = fmt.Sprintf("%s[%d]", path, counts[path]-1)
			l.places[prefix] = l.places[path]
		case unstable.KeyValue:
			l.keyPath(&p, prefix, e, counts)
		}
	}
}

// keyPath returns the path that the key of an expression names, with the index
// of the latest element of each array on the way, and enters its place.
func (l *Loaded) keyPath(p *unstable.Parser, prefix string, e *unstable.Node, counts map[string]int) string {
	path := prefix
	var at unstable.Position
	for it, first := e.Key(), true; it.Next(); first = false {
		n := it.Node()
		if first {
			at = p.Shape(n.Raw).Start
		} else if c := counts[path]; c > 0 {
			path = fmt.Sprintf("%s[%d]", path, c-1)
		}
		path = join(path, string(n.Data))
		if _, ok := l.places[path]; !ok {
			l.places[path] = at
		}
	}
	if e.Kind == unstable.ArrayTable {
		l.places[path] = at
	}
	return path
}

func (l *Loaded) table(v reflect.Value, path string, doc map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		at := join(path, name)
		f, ok := find(v, name)
		switch x := doc[name].(type) {
		case map[string]any:
			if ok && !isLeaf(f.Type()) && !isArray(f.Type()) {
				l.table(f, at, x)
				continue
			}
		case []any:
			if ok && isArray(f.Type()) {
				l.array(f, at, x)
				continue
			}
		}
		switch {
		case !ok:
			l.mistake(at, "unknown key"+suggest(name, names(v)))
		case !isLeaf(f.Type()):
			l.mistake(at, "want "+map[bool]string{true: "tables, [[" + at + "]]", false: "a table, [" + at + "]"}[isArray(f.Type())])
		default:
			if err := setTOML(f, doc[name]); err != nil {
				l.mistake(at, err.Error())
				continue
			}
			l.origins[at] = fmt.Sprintf("file %s:%d", l.src.File, l.places[at].Line)
		}
	}
}

func (l *Loaded) array(v reflect.Value, path string, docs []any) {
	list := reflect.MakeSlice(v.Type(), 0, len(docs))
	for range docs {
		list = reflect.Append(list, l.element(v.Type().Elem(), path))
	}
	v.Set(list)
	for i, x := range docs {
		doc, ok := x.(map[string]any)
		if !ok {
			l.mistake(path, "want tables, [["+path+"]]")
			return
		}
		l.table(v.Index(i), fmt.Sprintf("%s[%d]", path, i), doc)
	}
}

// element returns what a new element of an array starts from.
func (l *Loaded) element(t reflect.Type, path string) reflect.Value {
	if x, ok := l.src.Elements[schemaPath(path)]; ok {
		return reflect.ValueOf(x)
	}
	return reflect.Zero(t)
}

// suggest names the known keys that may have been meant.
func suggest(name string, known []string) string {
	best, dist := "", (len(name)+1)/3+1
	for _, k := range known {
		if d := distance(name, k); d < dist {
			best, dist = k, d
		}
	}
	if best == "" {
		return ""
	}
	return ", did you mean " + strconv.Quote(best) + "?"
}

// distance is the number of single-byte edits between two short names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diag+cost)
			diag, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

func (l *Loaded) environment() {
	env := map[string]string{}
	for _, kv := range l.src.Environ {
		if k, val, ok := strings.Cut(kv, "="); ok && val != "" && strings.HasPrefix(k, l.src.Prefix+"_") {
			env[k] = val
		}
	}
	if len(env) == 0 {
		return
	}
	l.grow(l.root, "", env)
	known := map[string]string{} // variable to path
	maps.Copy(known, l.src.Aliases)
	values := map[string]reflect.Value{}
	leaves(l.root, "", func(path string, v reflect.Value) {
		known[envName(l.src.Prefix, path)] = path
		values[path] = v
	})
	for _, name := range slices.Sorted(maps.Keys(env)) {
		path, ok := known[name]
		if !ok {
			if l.inSection(name) {
				l.mistakes = append(l.mistakes, Mistake{Key: "environment " + name, Text: "no such key" + suggest(name, slices.Sorted(maps.Keys(known)))})
			}
			continue
		}
		if err := setText(values[path], env[name]); err != nil {
			l.mistakes = append(l.mistakes, Mistake{Key: "environment " + name, Text: err.Error()})
			continue
		}
		l.origins[path] = "environment " + name
	}
}

// inSection says that a variable can only be meant as a key: it begins with
// the name of a section. Other variables with the prefix are not ours to judge.
func (l *Loaded) inSection(name string) bool {
	for _, f := range fields(l.root) {
		if !isLeaf(f.value.Type()) && strings.HasPrefix(name, envName(l.src.Prefix, f.name)+"_") {
			return true
		}
	}
	return false
}

// grow adds the elements of arrays that only the environment names.
func (l *Loaded) grow(v reflect.Value, path string, env map[string]string) {
	for _, f := range fields(v) {
		at := join(path, f.name)
		switch {
		case isArray(f.value.Type()):
			for i := f.value.Len(); hasPrefix(env, envName(l.src.Prefix, fmt.Sprintf("%s[%d]", at, i))+"_"); i++ {
				f.value.Set(reflect.Append(f.value, l.element(f.value.Type().Elem(), at)))
			}
		case !isLeaf(f.value.Type()):
			l.grow(f.value, at, env)
		}
	}
}

func hasPrefix(env map[string]string, prefix string) bool {
	for k := range env {
		if strings.HasPrefix(k, prefix) {
			return true
		}
	}
	return false
}

func (l *Loaded) flags() {
	values := map[string]reflect.Value{}
	leaves(l.root, "", func(path string, v reflect.Value) { values[path] = v })
	for _, path := range slices.Sorted(maps.Keys(l.src.Flags)) {
		f := l.src.Flags[path]
		v, ok := values[path]
		if !ok {
			l.mistakes = append(l.mistakes, Mistake{Key: f.Name, Text: "no key " + path})
			continue
		}
		if err := setText(v, f.Text); err != nil {
			l.mistakes = append(l.mistakes, Mistake{Key: f.Name, Text: err.Error()})
			continue
		}
		l.origins[path] = "flag " + f.Name
	}
}
