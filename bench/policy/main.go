package main

import (
	"os"

	"millrace/bench/rig"
)

func main() { os.Exit(rig.Main("policy", run)) }
