package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"millrace/client"
)

// demolish ends and removes everything.
func (w *world) demolish(keep bool) error {
	var list []error
	for _, c := range []*client.Client{w.client, w.admin} {
		if c != nil {
			list = append(list, c.Close())
		}
	}
	if w.cluster != nil {
		list = append(list, w.cluster.Close())
	}
	if w.net != nil {
		list = append(list, w.net.Close())
	}
	if w.small != nil {
		list = append(list, w.small.Close())
	}
	for _, m := range w.images {
		list = append(list, m.Close())
	}
	if w.hdfs != nil {
		list = append(list, w.hdfs.Stop())
	}
	if w.link != nil {
		list = append(list, w.link.close())
	}
	if w.proxy != nil {
		list = append(list, w.proxy.Close())
	}
	if w.s3 != nil {
		list = append(list, w.s3.Stop())
	}
	if keep {
		fmt.Println("kept:", w.dir)
	} else {
		list = append(list, os.RemoveAll(w.dir))
	}
	return errors.Join(list...)
}

// showLogs prints the end of each process's log.
func (w *world) showLogs() {
	if w.cluster == nil {
		return
	}
	for _, p := range append(w.cluster.Masters(), w.cluster.Workers()...) {
		fmt.Fprintf(os.Stderr, "the log of %s ends with:\n%s\n", p.Name, p.LogTail())
	}
}

// rest waits until all is well again and checks what can be checked then; then
// all processes must end cleanly.
func (w *world) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, p := range append(w.cluster.Masters(), w.cluster.Workers()...) {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	for _, o := range w.objects {
		if err := w.readWhole(ctx, o); err != nil {
			return err
		}
	}
	w.log.Say("all objects are read")
	for round := range w.round() + 1 {
		if err := w.callers[0].Look(ctx, round); err != nil {
			return err
		}
	}
	for _, c := range w.callers {
		if err := c.Look(ctx, w.round()); err != nil {
			return err
		}
	}
	if err := w.history.Check(settle); err != nil {
		return err
	}
	w.log.Say("%d calls are linearizable, nothing that was acknowledged is lost", w.history.Len())
	if err := errors.Join(w.tally.checkFailOvers(), w.tally.checkSwitches()); err != nil {
		return err
	}
	for _, p := range append(w.cluster.Workers(), w.cluster.Masters()...) {
		if err := p.Terminate(settle); err != nil {
			return err
		}
	}
	w.log.Say("all processes ended cleanly")
	return nil
}
