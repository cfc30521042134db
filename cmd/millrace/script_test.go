package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"millrace/internal/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"millrace": main, mountHelper: main})
}

// The scripts run the real program: `millrace` is this test binary, which
// calls main.
func TestScripts(t *testing.T) { scripts(t, "testdata/script") }

// TestMountScripts are those that mount.
func TestMountScripts(t *testing.T) {
	testenv.Require(t, testenv.Fuse, testenv.Root)
	scripts(t, "testdata/mount")
}

func scripts(t *testing.T, dir string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addresses": addresses,
			"busyport":  busyPort,
			"waitfor":   waitFor,
			"jsonfield": jsonField,

			"killinstance":  killInstance,
			"metrics":       instanceMetrics,
			"waitinstances": waitInstances,
		},
	})
}

// addresses DATA_DIR waits for addresses.json and names the master it holds in
// MILLRACE_MASTERS, the HTTP address in MASTER_HTTP.
func addresses(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: addresses DATA_DIR")
	}
	name := filepath.Join(ts.MkAbs(args[0]), "addresses.json")
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(name)
		if err == nil {
			var all map[string]map[string]string
			ts.Check(json.Unmarshal(b, &all))
			ts.Setenv("MILLRACE_MASTERS", all[masterRole]["grpc"])
			ts.Setenv("MASTER_HTTP", all[masterRole]["http"])
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no addresses: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// waitFor FILE waits until a file is there.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfor FILE")
	}
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// busyPort holds a port for the rest of the script and names it in PORT.
func busyPort(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv("PORT", port)
}

// jsonField FIELD WANT compares a field of the last stdout, a JSON object or
// the first of an array, with JSON.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: jsonfield FIELD WANT")
	}
	var doc any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &doc))
	if list, ok := doc.([]any); ok {
		if len(list) == 0 {
			ts.Fatalf("the array is empty")
		}
		doc = list[0]
	}
	obj, ok := doc.(map[string]any)
	if !ok {
		ts.Fatalf("no object")
	}
	v, there := obj[args[0]]
	b, err := json.Marshal(v)
	ts.Check(err)
	if match := there && string(b) == args[1]; match == neg {
		ts.Fatalf("field %s is %s (there: %t), want %s", args[0], b, there, args[1])
	}
}

// instancesOf reads addresses.json of the directory d.
func instancesOf(ts *testscript.TestScript) map[string]map[string]string {
	b, err := os.ReadFile(ts.MkAbs("d/addresses.json"))
	ts.Check(err)
	var all map[string]map[string]string
	ts.Check(json.Unmarshal(b, &all))
	return all
}

// killInstance NAME kills an instance of `up` in d as kill -9 does.
func killInstance(ts *testscript.TestScript, _ bool, args []string) {
	lock, err := os.ReadFile(ts.MkAbs("d/" + args[0] + "/lock"))
	ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(lock)))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	// It is back when another process holds the lock and serves.
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(ts.MkAbs("d/" + args[0] + "/lock"))
		if now, convErr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && convErr == nil && now != pid && ask(ts, args[0], "/readyz") == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come back", args[0])
		}
		<-time.After(10 * time.Millisecond)
	}
}

// ask asks an instance's HTTP server, which must answer, with any of want in
// its text.
func ask(ts *testscript.TestScript, instance, path string, want ...string) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+instancesOf(ts)[instance]["http"]+path, http.NoBody)
	ts.Check(err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	for _, w := range want {
		if !strings.Contains(string(text), w) {
			return fmt.Errorf("%s%s has no %s", instance, path, w)
		}
	}
	return err
}

// instanceMetrics NAME TEXT requires that an instance's metrics hold a text.
func instanceMetrics(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ask(ts, args[0], "/metrics", args[1]))
}

// waitInstances waits until every instance in d is ready.
func waitInstances(ts *testscript.TestScript, _ bool, _ []string) {
	deadline := time.Now().Add(time.Minute)
	for name := range instancesOf(ts) {
		for {
			err := ask(ts, name, "/readyz")
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				ts.Fatalf("%s: %v", name, err)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}
