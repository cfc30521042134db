package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandsAreDocumented: docs/commands.md names every command.
func TestCommandsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			look(sub)
		}
		if c.Name() == "help" || c.HasSubCommands() || c.Parent().Name() == "completion" {
			return
		}
		if !strings.Contains(string(doc), "`"+c.CommandPath()+" ") && !strings.Contains(string(doc), "`"+c.CommandPath()+"`") {
			t.Errorf("docs/commands.md does not name %s", c.CommandPath())
		}
	}
	look((&app{stdout: io.Discard, stderr: io.Discard}).root())
}
