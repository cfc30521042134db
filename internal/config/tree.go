package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// Key is one leaf of a configuration.
type Key struct {
	Path   string // "worker.listen", "worker.tier[0].dir"
	Env    string // the environment variable that sets it
	Origin string // where its value came from: "default", "file etc/a.toml:3", "environment X", "flag --listen"

	value reflect.Value
}

// Schema returns the path without the indexes of arrays: "worker.tier.dir".
func (k Key) Schema() string { return schemaPath(k.Path) }

func schemaPath(path string) string {
	var b strings.Builder
	depth := 0
	for _, r := range path {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case depth == 0:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// envName is the environment variable of a path.
func envName(prefix, path string) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r == ']':
			return -1
		case unicode.IsLetter(r), unicode.IsDigit(r):
			return unicode.ToUpper(r)
		default:
			return '_'
		}
	}, path)
	return prefix + "_" + s
}

// isLeaf says that a type is set as one value.
func isLeaf(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return true
	}
	return t.Kind() != reflect.Struct && !isArray(t)
}

// isArray says that a type is an array of tables.
func isArray(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && !isLeaf(t.Elem())
}

// field is one key of a struct: its TOML name and the place of its value.
type field struct {
	name  string
	value reflect.Value
}

// fields lists the keys of a struct in their order; embedded structs without a
// name of their own are part of it, as in package toml.
func fields(v reflect.Value) []field {
	var list []field
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			list = append(list, fields(v.Field(i))...)
		case name != "":
			list = append(list, field{name, v.Field(i)})
		}
	}
	return list
}

// find returns the value of a key name of a struct.
func find(v reflect.Value, name string) (reflect.Value, bool) {
	all := fields(v)
	i := slices.IndexFunc(all, func(f field) bool { return f.name == name })
	if i < 0 {
		return reflect.Value{}, false
	}
	return all[i].value, true
}

// names lists the key names of a struct, for messages.
func names(v reflect.Value) []string {
	var list []string
	for _, f := range fields(v) {
		list = append(list, f.name)
	}
	return list
}

// leaves calls do for each leaf below v, in order.
func leaves(v reflect.Value, path string, do func(path string, v reflect.Value)) {
	if isLeaf(v.Type()) {
		do(path, v)
		return
	}
	if isArray(v.Type()) {
		for i := range v.Len() {
			leaves(v.Index(i), fmt.Sprintf("%s[%d]", path, i), do)
		}
		return
	}
	for _, f := range fields(v) {
		leaves(f.value, join(path, f.name), do)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
