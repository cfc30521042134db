package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/client"
	"millrace/fuse"
	"millrace/internal/config"
	"millrace/internal/errs"
	"millrace/internal/size"
)

// The exit statuses that scripts may rely on.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// run is the whole program: it runs the command that args name and returns the
// exit status. Data goes to stdout, everything else to stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr, environ: os.Environ(), args: args}
	root := a.root() //nolint:contextcheck // cobra carries it
	root.SetArgs(args)
	root.SetIn(stdin)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(stderr, "millrace: %v\nusage: %s\n", err, cmd.UseLine())
		return exitUsage
	case errors.Is(err, errTold):
		return exitFailed
	default:
		_, _ = fmt.Fprintf(stderr, "millrace: %v\n", err)
		return exitFailed
	}
}

// errTold is a failure whose reason the user has already been told.
var errTold = errors.New("failed")

// usageError is a wrong command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	environ        []string
	args           []string // of the command line

	output string // of --output

	logging sync.Mutex // held by those instances of `up` that write to stderr
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "millrace",
		Short:         "A distributed cache for data in S3 and other under-stores",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.stdout) // before the completion command looks for it
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.String("config", "", "configuration `FILE` (MILLRACE_CONFIG)")
	f.String("masters", "", "gRPC addresses of the masters, `HOST:PORT[,...]` (MILLRACE_MASTERS; default 127.0.0.1:7760)")
	f.String("log-level", "", "`LEVEL` of the log: debug, info, warn or error")
	root.AddCommand(
		a.upCommand(), a.masterCommand(), a.workerCommand(), a.mountCommand(), a.umountCommand(),
		a.ufsCommand(), a.loadCommand(), a.jobsCommand(),
		a.lsCommand(), a.statCommand(), a.catCommand(), a.getCommand(), a.duCommand(), a.freeCommand(),
		a.statusCommand(), a.mastersCommand(), a.workersCommand(), a.doctorCommand(), a.configCommand(), a.versionCommand(),
	)
	root.InitDefaultCompletionCmd()
	root.SetHelpCommand(helpCommand(root))
	strict(root)
	return root
}

// strict makes wrong arguments usage errors everywhere, and a command that
// only groups others one when it is called alone.
func strict(c *cobra.Command) {
	for _, sub := range c.Commands() {
		strict(sub)
	}
	if c.HasSubCommands() && c.RunE == nil && c.Run == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q%s", args[0], suggestions(c, args[0]))
			}
			return usagef("a command is needed: %s", strings.Join(commandNames(c), ", "))
		}
		return
	}
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// helpCommand is cobra's, which exits 0 for a command that there is not.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show what a command does",
		Args:  cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("unknown command %q", strings.Join(args, " "))
			}
			return c.Help()
		},
	}
}

func suggestions(c *cobra.Command, name string) string {
	c.SuggestionsMinimumDistance = 2
	if list := c.SuggestionsFor(name); len(list) > 0 {
		return ", did you mean " + strings.Join(list, " or ") + "?"
	}
	return ""
}

func commandNames(c *cobra.Command) []string {
	var list []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			list = append(list, sub.Name())
		}
	}
	return list
}

// bindings say which flags of a command set which keys.
type bindings map[string]string

// settings composes the configuration of a command: defaults, file,
// environment, and the flags that bind names.
func (a *app) settings(cmd *cobra.Command, bind bindings) (*Settings, *config.Loaded, error) {
	name, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		name = a.getenv("MILLRACE_CONFIG")
	}
	src := configSources(a.environ)
	if name != "" {
		if src.Data, err = os.ReadFile(name); err != nil {
			return nil, nil, errs.Wrap(err, "read configuration", name)
		}
		src.File = name
	}
	src.Flags = map[string]config.Flag{}
	enter := func(flag, path string) {
		if f := cmd.Flags().Lookup(flag); f != nil && f.Changed {
			src.Flags[path] = config.Flag{Name: "--" + flag, Text: f.Value.String()}
		}
	}
	enter("masters", "cluster.masters")
	enter("log-level", "cluster.log_level")
	for flag, path := range bind {
		enter(flag, path)
	}
	return loadSettings(src)
}

func (a *app) getenv(name string) string {
	for _, kv := range a.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// logger writes to stderr at the level of the settings.
func (a *app) logger(s *Settings) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.Cluster.LogLevel)); err != nil {
		level = slog.LevelInfo // Validate has refused it
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

// outputFlag adds --output. short is "o", or "" on mount.
func (a *app) outputFlag(f *pflag.FlagSet) {
	a.output = "table"
	f.VarP(&choice{&a.output, []string{"table", "json"}}, "output", "o", "table or json")
}

// choice is a flag whose values are few.
type choice struct {
	value *string
	from  []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return strings.Join(c.from, "|") }
func (c *choice) Set(s string) error {
	if slices.Contains(c.from, s) {
		*c.value = s
		return nil
	}
	return fmt.Errorf("want %s", strings.Join(c.from, " or "))
}

// toolRetryFor is how long a tool goes on asking while no leader answers: longer
// than a change of the leader takes, and shorter than a mount's patience.
const toolRetryFor = size.Duration(5 * time.Second)

// session is a command's connection to the cluster.
type session struct {
	*client.Client
}

// connect dials the masters for a command that takes paths: those that are
// below a FUSE mount on this host are turned into paths of the namespace, and
// say which cluster is meant when the user did not.
func (a *app) connect(cmd *cobra.Command, args ...*string) (*session, error) {
	s, loaded, err := a.settings(cmd, nil)
	if err != nil {
		return nil, err
	}
	told := loaded.Origin("cluster.masters") != ""
	for _, arg := range args {
		place, ok := fuse.Lookup(*arg)
		switch {
		case ok:
			*arg = place.Path
			if !told && len(place.Masters) > 0 {
				s.Cluster.Masters = place.Masters
			}
		case !strings.HasPrefix(*arg, "/"):
			return nil, usagef("%q is neither a path of the namespace, which begins with a slash, nor below a FUSE mount", *arg)
		default:
			*arg = cleanPath(*arg)
		}
	}
	// A tool says what is wrong once, in its own words.
	log := slog.New(slog.DiscardHandler)
	if loaded.Origin("cluster.log_level") != "" {
		log = a.logger(s)
	}
	if loaded.Origin("client.retry_for") == "" {
		s.Client.RetryFor = min(s.Client.RetryFor, toolRetryFor) // somebody is waiting at a prompt
	}
	c, err := client.Dial(cmd.Context(), s.clientConfig(s.Cluster.Masters), log, nil)
	if err != nil {
		return nil, err
	}
	return &session{c}, nil
}

// pathArgs returns pointers to all args, for connect.
func pathArgs(args []string) []*string {
	list := make([]*string, len(args))
	for i := range args {
		list[i] = &args[i]
	}
	return list
}
