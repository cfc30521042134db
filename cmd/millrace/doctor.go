package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/errs"
)

// doctorPatience bounds each question that the doctor asks over the network.
const doctorPatience = 3 * time.Second

// The states of a finding.
const (
	findingOK      = "ok"
	findingWarning = "warning" // works, and not as well as it could
	findingProblem = "problem" // does not work
)

// finding is what one check found.
type finding struct {
	State  string `json:"state"`
	Check  string `json:"check"`
	Detail string `json:"detail"`
	Advice string `json:"advice"` // what to do; empty when all is well
}

// doctor collects what the checks find.
type doctor struct {
	app      *app
	settings *Settings
	dataDirs []string // whose addresses.json say where processes of this host answer
	told     bool     // the user said where the masters are

	findings []finding
}

func (a *app) doctorCommand() *cobra.Command {
	d := &doctor{app: a}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host and the cluster, and say what to do",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.checkConfiguration(cmd)
			d.examine(cmd.Context())
			if err := d.print(); err != nil {
				return err
			}
			if d.worst() == findingProblem {
				return errTold
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&d.dataDirs, "data-dir", nil, "data `DIR` of an `up` on this host, beside those of the configuration; may be repeated")
	a.outputFlag(c.Flags())
	return c
}

// examine runs all checks but that of the configuration.
func (d *doctor) examine(ctx context.Context) {
	d.checkFuse()
	d.checkPassthrough()
	d.checkOpenFiles()
	d.checkCaches()
	d.checkSharedMemory()
	d.checkCluster(ctx)
	d.checkMounts(ctx)
}

// checkConfiguration reads the settings; with a mistake in them, the other
// checks go on with the defaults.
func (d *doctor) checkConfiguration(cmd *cobra.Command) {
	settings, loaded, err := d.app.settings(cmd, nil)
	if err != nil {
		d.problem("configuration", err.Error(), "correct it; millrace config check FILE names every mistake")
		d.settings = defaultSettings()
		return
	}
	d.settings, d.told = settings, loaded.Origin("cluster.masters") != ""
	changed := 0
	for _, k := range loaded.Keys() {
		if loaded.Origin(k.Path) != "" {
			changed++
		}
	}
	d.ok("configuration", "valid; keys that are not at their defaults: %d", changed)
}

// print writes the findings.
func (d *doctor) print() error {
	if d.app.output == "json" {
		return d.app.json(d.findings)
	}
	t := d.app.table("STATE", "CHECK", "FOUND")
	for _, f := range d.findings {
		t.row(f.State, f.Check, f.Detail)
		if f.Advice != "" {
			t.row("", "", "-> "+f.Advice)
		}
	}
	return t.flush()
}

// worst returns the worst state that was found.
func (d *doctor) worst() string {
	worst := findingOK
	for _, f := range d.findings {
		if f.State == findingProblem || worst == findingOK {
			worst = f.State
		}
		if worst == findingProblem {
			break
		}
	}
	return worst
}

func (d *doctor) ok(check, format string, args ...any) {
	d.add(findingOK, check, fmt.Sprintf(format, args...), "")
}

func (d *doctor) warn(check, detail, advice string) {
	d.add(findingWarning, check, detail, advice)
}

func (d *doctor) problem(check, detail, advice string) {
	d.add(findingProblem, check, detail, advice)
}

func (d *doctor) add(state, check, detail, advice string) {
	detail = strings.ReplaceAll(strings.TrimSpace(detail), "\n", "; ") // of several mistakes
	d.findings = append(d.findings, finding{state, check, detail, advice})
}

// hintOf is the advice that an error brings, or else.
func hintOf(err error, otherwise string) string {
	if named, ok := errors.AsType[*errs.Error](err); ok && named.Hint != "" {
		return named.Hint
	}
	return otherwise
}
