package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/config"
	"millrace/internal/size"
)

type dir struct {
	Path string     `toml:"path"`
	Size size.Bytes `toml:"size"`
}

type sample struct {
	Top struct {
		Names []string      `toml:"names"`
		On    bool          `toml:"on"`
		Wait  size.Duration `toml:"wait"`
	} `toml:"top"`
	Work struct {
		Listen string `toml:"listen"`
		Dirs   []dir  `toml:"dir"`
		Hidden string `toml:"-"`
		Inner
	} `toml:"work"`
}

// Inner is embedded: its keys are those of its owner.
type Inner struct {
	Ratio float64 `toml:"ratio"`
	Count int     `toml:"count"`
}

func defaults() *sample {
	var s sample
	s.Top.Names = []string{"a"}
	s.Top.Wait = size.Duration(time.Second)
	s.Work.Listen = "127.0.0.1:1"
	s.Work.Ratio = 0.5
	return &s
}

var elements = map[string]any{"work.dir": dir{Size: 7}}

func TestPrecedence(t *testing.T) {
	file := `
[top]
names = ["x", "y"]
on = true
wait = "3s"
[work]
listen = "file"
count = 4
ratio = 1
[[work.dir]]
path = "/one"
[[work.dir]]
path = "/two"
size = "1KiB"
`
	s := defaults()
	l, err := config.Load(s, config.Sources{
		File: "f.toml", Data: []byte(file), Prefix: "APP", Elements: elements,
		Environ: []string{"APP_WORK_COUNT=5", "APP_WORK_LISTEN=env", "APP_NAMES=p, q", "APP_WORK_DIR_2_PATH=/three", "APP_OTHER=1", "APP_TOP_ON=", "HOME=/"},
		Aliases: map[string]string{"APP_NAMES": "top.names"},
		Flags:   map[string]config.Flag{"work.listen": {Name: "--listen", Text: "flag"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Top.Names = []string{"p", "q"}
	want.Top.On = true
	want.Top.Wait = size.Duration(3 * time.Second)
	want.Work.Listen = "flag"
	want.Work.Count = 5
	want.Work.Ratio = 1
	want.Work.Dirs = []dir{{"/one", 7}, {"/two", 1024}, {"/three", 7}}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	var got strings.Builder
	for _, k := range l.Keys() {
		fmt.Fprintf(&got, "%s = %s # %s\n", k.Path, k.Literal(), k.Origin)
	}
	wantKeys := `top.names = ["p", "q"] # environment APP_NAMES
top.on = true # file f.toml:4
top.wait = "3s" # file f.toml:5
work.listen = "flag" # flag --listen
work.dir[0].path = "/one" # file f.toml:11
work.dir[0].size = "7" # default
work.dir[1].path = "/two" # file f.toml:13
work.dir[1].size = "1KiB" # file f.toml:14
work.dir[2].path = "/three" # environment APP_WORK_DIR_2_PATH
work.dir[2].size = "7" # default
work.ratio = 1.0 # file f.toml:9
work.count = 5 # environment APP_WORK_COUNT
`
	if d := cmp.Diff(wantKeys, got.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestMistakes(t *testing.T) {
	cases := []struct {
		name, file string
		env        []string
		check      error
		want       string
	}{
		{
			"unknown", "[top]\nnmaes = []\n[nope]\nx = 1\n[work]\nlisten.x = 1\n", nil, nil,
			`f.toml:2:1: top.nmaes: unknown key, did you mean "names"?
f.toml:3:2: nope: unknown key
f.toml:6:1: work.listen: want a string`,
		},
		{
			"types", "[top]\nnames = 1\non = \"yes\"\n wait = 3.5\n[work]\nratio = true\ndir = 1\n", nil, nil,
			`f.toml:2:1: top.names: want a list
f.toml:3:1: top.on: want true or false, not the string "yes"
f.toml:4:2: top.wait: want a duration, such as "30s"
f.toml:6:1: work.ratio: want a number
f.toml:7:1: work.dir: want tables, [[work.dir]]`,
		},
		{
			"in an array", "[[work.dir]]\npath = \"a\"\n[[work.dir]]\nsize = \"much\"\npth = \"b\"\n", nil, nil,
			`f.toml:4:1: work.dir[1].size: size "much": want a number of bytes like 64MiB, 10GB or 1048576
f.toml:5:1: work.dir[1].pth: unknown key, did you mean "path"?`,
		},
		{
			"syntax", "[top\n", nil, nil, `f.toml:1:5: expected ']' to close table name`,
		},
		{
			"environment", "",
			[]string{"APP_TOP_ONN=1", "APP_TOP_ON=maybe"},
			nil,
			`environment APP_TOP_ON: "maybe" is neither true nor false
environment APP_TOP_ONN: no such key, did you mean "APP_TOP_ON"?`,
		},
		{
			"validation", "[work]\ncount = 3\n",
			[]string{"APP_WORK_LISTEN=x"},
			fmt.Errorf("work.count: must be even\nwork.listen: must have a port\ntop.wait: too short"),
			`work.listen: must have a port (from environment APP_WORK_LISTEN)
top.wait: too short
f.toml:2:1: work.count: must be even`,
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			l, err := config.Load(defaults(), config.Sources{File: "f.toml", Data: []byte(tc.file), Prefix: "APP", Environ: tc.env, Elements: elements})
			if tc.check != nil {
				err = l.Check(tc.check)
			}
			if err == nil {
				t.Fatal("no mistake found")
			}
			if d := cmp.Diff(tc.want, err.Error()); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestWriteDefault(t *testing.T) {
	var b strings.Builder
	doc := func(path string) string {
		return map[string]string{"top": "The top.", "work.dir": "Directories.", "work.dir.size": "Bytes."}[path]
	}
	if err := config.WriteDefault(&b, defaults(), elements, doc); err != nil {
		t.Fatal(err)
	}
	want := `
# The top.
[top]

names = ["a"]

on = false

wait = "1s"

[work]

listen = "127.0.0.1:1"

ratio = 0.5

count = 0

# Directories.
#[[work.dir]]

#path = ""

# Bytes.
#size = "7"
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	s := defaults()
	if _, err := config.Load(s, config.Sources{File: "d", Data: []byte(b.String()), Prefix: "APP"}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(defaults(), s); d != "" {
		t.Errorf("the default file changes something (-want +got)\n%s", d)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("[top]\nnames = [\"x\"]\n[[work.dir]]\nsize = 3\n[work]\n")
	f.Add("top.on = true\nwork.dir = [{path = \"x\"}, 3]\n")
	f.Fuzz(func(t *testing.T, s string) {
		_, err := config.Load(defaults(), config.Sources{File: "f", Data: []byte(s), Prefix: "APP"})
		_ = err // any answer but a panic
		t.Log(err)
	})
}
