package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"millrace/bench/rig"
	"millrace/internal/testenv"
	"millrace/test/cluster"
	"millrace/test/hosts"
	"millrace/test/trial"
)

const (
	// inHDFS is where the HDFS is bound.
	inHDFS      = "/hdfs"
	hdfsDir     = "/chaos"
	hdfsObjects = 8
	hdfsBlock   = 1 << 20
	dataNodes   = 3
	hdfsUser    = "root"
	// slowestSwitch bounds a read that meets a DataNode that is frozen, while all
	// else is well: its deadline is 2 s, and a file has some blocks.
	slowestSwitch = 8 * time.Second
)

// startHDFS starts an HDFS, with a NameNode and three DataNodes, and fills it.
// Without Java there is none.
func (w *world) startHDFS(ctx context.Context, rng *rand.Rand) error {
	if err := testenv.HadoopFS.Missing(); err != nil {
		w.log.Say("NO HDFS: %v", err)
		return nil
	}
	host := "127.0.0.1"
	if w.net != nil {
		host = hosts.StoreAddress
	}
	var err error
	if w.hdfs, err = testenv.LaunchHDFSAt(context.WithoutCancel(ctx), host, dataNodes); err != nil {
		return err
	}
	c, err := hdfs.NewClient(hdfs.ClientOptions{Addresses: []string{w.hdfs.Address()}, User: hdfsUser})
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range hdfsObjects {
		o := &object{path: fmt.Sprintf("%s/h%d.bin", inHDFS, i), size: 1 + rng.Int64N(3*hdfsBlock), store: &w.hdfsStore}
		o.content = rig.NewContent(o.path, o.size)
		data := make([]byte, o.size)
		o.content.ReadAt(data, 0)
		name := hdfsDir + strings.TrimPrefix(o.path, inHDFS)
		if err := testenv.PutHDFS(c, name, data, hdfsBlock, dataNodes); err != nil {
			return err
		}
		w.objects = append(w.objects, o)
	}
	w.log.Say("%d files in an HDFS with %d DataNodes", hdfsObjects, dataNodes)
	return nil
}

func dataNode(rng *rand.Rand) string { return fmt.Sprint("dn", 1+rng.IntN(dataNodes)) }

// killDataNode kills one; the others have all blocks.
func (w *world) killDataNode(ctx context.Context, rng *rand.Rand) error {
	dn := dataNode(rng)
	w.log.HappenTo(dn, "kill -9 a DataNode")
	return w.endDaemon(ctx, rng, dn)
}

// killNameNode kills the only one.
func (w *world) killNameNode(ctx context.Context, rng *rand.Rand) error {
	w.log.Happen("kill -9 the NameNode")
	w.hdfsStore.trouble.Add(1)
	defer w.hdfsStore.trouble.Add(1)
	return w.endDaemon(ctx, rng, "nn")
}

// endDaemon kills a daemon of HDFS and starts it again.
func (w *world) endDaemon(ctx context.Context, rng *rand.Rand, daemon string) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	if err := w.hdfs.Kill(ctx, daemon); err != nil {
		return err
	}
	trial.Sleep(ctx, trial.Between(rng, time.Second, 5*time.Second))
	return w.hdfs.Revive(ctx)
}

// freeHDFS drops what is cached of HDFS, when all workers are there again after
// what was before.
func (w *world) freeHDFS(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	err := cluster.Until(ctx, func() error {
		_, err := w.admin.Free(ctx, inHDFS)
		return err
	})
	if err != nil {
		return fmt.Errorf("free what is cached of HDFS: %w", err)
	}
	return nil
}

// freezeDataNode freezes one, and reads every file of HDFS anew: each read goes
// to another DataNode soon. All else is well meanwhile.
func (w *world) freezeDataNode(ctx context.Context, rng *rand.Rand) error {
	dn := dataNode(rng)
	if err := w.freeHDFS(ctx); err != nil {
		return err
	}
	w.log.HappenTo(dn, "SIGSTOP a DataNode")
	if err := w.hdfs.Signal(dn, syscall.SIGSTOP); err != nil {
		return err
	}
	began, worst := time.Now(), time.Duration(0)
	var err error
	for _, o := range w.objects {
		if o.store != &w.hdfsStore || err != nil {
			continue
		}
		one := time.Now()
		err = w.readWhole(ctx, o)
		worst = max(worst, time.Since(one))
	}
	trial.Sleep(ctx, w.frozen-time.Since(began))
	if e := w.hdfs.Signal(dn, syscall.SIGCONT); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	w.log.Say("the slowest read without it took %v", worst.Round(time.Millisecond))
	w.tally.switched(worst)
	return nil
}
