package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// json prints one document.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// jsonLine prints one object of a stream.
func (a *app) jsonLine(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// jsonArray prints the elements of one document as they come, so that a long
// listing needs no memory.
type jsonArray struct {
	w io.Writer
	n int
}

func (j *jsonArray) add(v any) error {
	lead := ",\n  "
	if j.n == 0 {
		lead = "[\n  "
	}
	j.n++
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(j.w, "%s%s", lead, b)
	return err
}

func (j *jsonArray) end() error {
	text := "\n]\n"
	if j.n == 0 {
		text = "[]\n"
	}
	_, err := io.WriteString(j.w, text)
	return err
}

// table prints columns, with a head in capitals.
type table struct {
	w   *tabwriter.Writer
	err error
}

func (a *app) table(head ...string) *table {
	t := &table{w: tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

// section is a table behind another one.
func (a *app) section(head ...string) *table {
	_, err := fmt.Fprintln(a.stdout)
	t := a.table(head...)
	t.err = errors.Join(err, t.err)
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = printable(c)
	}
	if _, err := fmt.Fprintln(t.w, strings.Join(cells, "\t")); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *table) flush() error {
	if t.err != nil {
		return t.err
	}
	return t.w.Flush()
}

// printable returns a name as it is when a table can show it, and quoted when
// it would break the table or speak to the terminal.
func printable(s string) string {
	ok := utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
	if ok {
		return s
	}
	return strconv.Quote(s)
}

// rawPath is what JSON cannot say of a path that is not valid UTF-8: its
// bytes. In `path` each invalid byte is then U+FFFD.
func rawPath(p string) string {
	if utf8.ValidString(p) {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(p))
}

func cleanPath(p string) string { return path.Clean("/" + p) }

func sizeText(n int64) string {
	if n < 0 {
		return strconv.FormatInt(n, 10)
	}
	return humanize.IBytes(uint64(n))
}

func countText(n int64) string { return humanize.Comma(n) }

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

// isTerminal says whether w is a terminal that can redraw a line. One without
// rows, as some pseudo-terminals are, cannot.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, rows, err := term.GetSize(int(f.Fd()))
	return err == nil && rows > 0
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return countText(n) + " " + many
}

// percent is never rounded to 0 % or 100 % of what is neither.
func percent(part, whole int64) string {
	p := min(max(100*float64(part)/float64(whole), 0.1), 99.9)
	return strconv.FormatFloat(p, 'f', 1, 64) + "%"
}
