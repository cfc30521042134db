package size_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"millrace/internal/size"
)

var (
	_ pflag.Value = (*size.Bytes)(nil)
	_ pflag.Value = (*size.Duration)(nil)
)

func TestParseBytes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want size.Bytes
		text string
	}{
		{"0", 0, "0"},
		{"0GiB", 0, "0"},
		{"1", 1, "1"},
		{"1B", 1, "1"},
		{"1048576", size.MiB, "1MiB"},
		{"1_048_576", size.MiB, "1MiB"},
		{"64MiB", 64 << 20, "64MiB"},
		{" 64 mib ", 64 << 20, "64MiB"},
		{"10GB", 10_000_000_000, "9765625KiB"},
		{"1kB", 1000, "1000"},
		{"1.5GiB", 3 << 29, "1536MiB"},
		{"0.5KiB", 512, "512"},
		{"2TiB", 2 << 40, "2TiB"},
		{"3PiB", 3 << 50, "3PiB"},
		{"7EiB", 7 << 60, "7EiB"},
		{"9223372036854775807", 1<<63 - 1, "9223372036854775807"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			got, err := size.ParseBytes(tc.in)
			if err != nil || got != tc.want {
				t.Fatalf("ParseBytes = %d, %v; want %d", got, err, tc.want)
			}
			if got.String() != tc.text {
				t.Errorf("String = %q, want %q", got, tc.text)
			}
			if again, err := size.ParseBytes(got.String()); err != nil || again != got {
				t.Errorf("read again: %d, %v", again, err)
			}
		})
	}
}

func TestParseBytesRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "MiB", "-1", "+1", "1.", ".5MiB", "1..5GiB", "1e3", "0x10", "1/3", "64M", "64 Mi B", "1__0", "_1", "1_",
		"0.3KiB", "8EiB", "9223372036854775808", "1.0000001B", "nan", "infinity", strings.Repeat("9", 100),
	} {
		if got, err := size.ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", in, got)
		}
	}
	b := size.Bytes(7)
	if err := b.Set("x"); err == nil || b != 7 {
		t.Errorf("Set of nonsense: %v, value %d", err, b)
	}
}

func TestParseDuration(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want time.Duration
		text string
	}{
		{"0", 0, "0s"},
		{"30s", 30 * time.Second, "30s"},
		{"90s", 90 * time.Second, "1m30s"},
		{"60s", time.Minute, "1m"},
		{"1h", time.Hour, "1h"},
		{"10h", 10 * time.Hour, "10h"},
		{"10m", 10 * time.Minute, "10m"},
		{"1h30m", 90 * time.Minute, "1h30m"},
		{"1h0m5s", time.Hour + 5*time.Second, "1h0m5s"},
		{"250ms", 250 * time.Millisecond, "250ms"},
		{" 1.5s ", 1500 * time.Millisecond, "1.5s"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			got, err := size.ParseDuration(tc.in)
			if err != nil || got.Std() != tc.want {
				t.Fatalf("ParseDuration = %v, %v; want %v", got, err, tc.want)
			}
			if got.String() != tc.text {
				t.Errorf("String = %q, want %q", got, tc.text)
			}
			if again, err := size.ParseDuration(got.String()); err != nil || again != got {
				t.Errorf("read again: %v, %v", again, err)
			}
		})
	}
	for _, in := range []string{"", "30", "-1s", "forever"} {
		if got, err := size.ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", in, got)
		}
	}
}

func TestTOML(t *testing.T) {
	type config struct {
		Capacity size.Bytes    `toml:"capacity"`
		Wait     size.Duration `toml:"wait"`
	}
	want := config{Capacity: 64 * size.MiB, Wait: size.Duration(time.Minute)}
	for _, text := range []string{
		"capacity = \"64MiB\"\nwait = \"60s\"\n",
		"capacity = 67108864\nwait = \"1m\"\n",
		"capacity = 67_108_864\nwait = '1m'\n",
	} {
		var got config
		if err := toml.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", text, d)
		}
	}
	out, err := toml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), "capacity = '64MiB'\nwait = '1m'\n"; got != want {
		t.Errorf("marshaled %q, want %q", got, want)
	}
	var c config
	if err := toml.Unmarshal([]byte("capacity = \"64M\"\n"), &c); err == nil {
		t.Error("an unknown unit was taken")
	}
}

func TestFlag(t *testing.T) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	capacity, wait := size.GiB, size.Duration(time.Second)
	flags.Var(&capacity, "capacity", "")
	flags.Var(&wait, "wait", "")
	if err := flags.Parse([]string{"--capacity", "2GiB", "--wait=5s"}); err != nil {
		t.Fatal(err)
	}
	if capacity != 2*size.GiB || wait.Std() != 5*time.Second {
		t.Errorf("got %v, %v", capacity, wait)
	}
	if got := flags.Lookup("capacity").DefValue; got != "1GiB" {
		t.Errorf("default is shown as %q", got)
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"64MiB", "10GB", "1048576", "1.5TiB", "8EiB", "1_000", "-1", "0.1B"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := size.ParseBytes(s)
		if err != nil {
			return
		}
		if b < 0 {
			t.Fatalf("ParseBytes(%q) = %d is negative", s, b)
		}
		if again, err := size.ParseBytes(b.String()); err != nil || again != b {
			t.Fatalf("%q is %d, its text %q is %d, %v", s, b, b, again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"30s", "1h2m3.5s", "1d", "-5s", "9999999h", "1", ".s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := size.ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := size.ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%q is %d, its text %q is %d, %v", s, d, d, again, err)
		}
	})
}
