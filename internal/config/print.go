package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
)

// WriteDefault prints the struct that v points to as a documented TOML file.
// doc returns the text of a table or key by its path; empty ones get none.
// An element of an array of tables is printed commented out, from elements,
// since there is none by default.
func WriteDefault(w io.Writer, v any, elements map[string]any, doc func(path string) string) error {
	p := &printer{w: w, doc: doc, elements: elements}
	p.table(reflect.ValueOf(v).Elem(), "", "")
	return p.err
}

// WriteValues prints the struct that v points to as a TOML file that Load reads
// back to the same values, without documentation.
func WriteValues(w io.Writer, v any) error {
	p := &printer{w: w, doc: func(string) string { return "" }, values: true}
	p.table(reflect.ValueOf(v).Elem(), "", "")
	return p.err
}

type printer struct {
	w        io.Writer
	doc      func(string) string
	elements map[string]any
	values   bool // print the elements that there are
	err      error
}

func (p *printer) line(format string, a ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", a...)
	}
}

func (p *printer) comment(path string) {
	text := p.doc(path)
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(wrap(text, 76), "\n") {
		p.line("# %s", line)
	}
}

func (p *printer) table(v reflect.Value, path, lead string) {
	all := fields(v)
	for _, f := range all {
		if at := join(path, f.name); isLeaf(f.value.Type()) {
			p.line("")
			p.comment(at)
			p.line("%s%s = %s", lead, f.name, literal(f.value))
		}
	}
	for _, f := range all {
		at := join(path, f.name)
		switch {
		case isArray(f.value.Type()) && p.values:
			for i := range f.value.Len() {
				p.line("\n[[%s]]", at)
				p.table(f.value.Index(i), at, lead)
			}
		case isArray(f.value.Type()):
			el := reflect.New(f.value.Type().Elem()).Elem()
			if x, ok := p.elements[at]; ok {
				el.Set(reflect.ValueOf(x))
			}
			p.line("")
			p.comment(at)
			p.line("#[[%s]]", at)
			p.table(el, at, "#")
		case !isLeaf(f.value.Type()):
			p.line("")
			p.comment(at)
			p.line("[%s]", at)
			p.table(f.value, at, lead)
		}
	}
}

// wrap breaks text into lines of at most width bytes, at blanks.
func wrap(text string, width int) string {
	var b strings.Builder
	n := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case n == 0:
		case n+1+len(word) > width:
			b.WriteByte('\n')
			n = 0
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String()
}
