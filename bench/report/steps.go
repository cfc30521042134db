package main

import (
	"context"
	"io"
	"path/filepath"

	"millrace/bench/rig"
)

// How much is read, and by how many at once: the bare client at its best on
// two processors, small files as a data loader does it.
const (
	smallSize    = 100 << 10
	bareBig      = 8
	bareSmall    = 32
	smallReaders = 8

	randomOne   = 8_000 // 4 KiB pages by one reader
	randomMany  = 32_000
	randomReady = 131_072 // from memory, a few times over
	readyPasses = 5
	randomCold  = 1_000
	openCloses  = 3_000

	wireReads = 200_000 // of 4 KiB
)

// Units of work.
const (
	inBytes = "MiB"
	inFiles = "files"
	inReads = "reads"
)

// steps are the measurements of one run, in their order: what is compared
// stands side by side. seed decides the order of what is shuffled.
func (r *report) steps(seed uint64) []step {
	steps := r.coldSteps()
	steps = append(steps, r.sequentialSteps()...)
	steps = append(steps, r.randomSteps(seed)...)
	steps = append(steps, r.smallSteps(seed)...)
	return append(steps, r.wireSteps()...)
}

func (r *report) bigPath(root string) string {
	return filepath.Join(root, filepath.FromSlash(r.big.Objects[0].Key))
}

func (r *report) bigMiB() float64 { return float64(r.big.Bytes()) / (1 << 20) }

// coldSteps read what is in no cache: each time it is freed, and mounted anew,
// since a mount keeps descriptors of what was freed.
func (r *report) coldSteps() []step {
	cold := &coldMount{r: r}
	load := func(path string) func(context.Context) error {
		return func(ctx context.Context) error { return r.cold.Run(ctx, io.Discard, io.Discard, "load", path) }
	}
	files := float64(len(r.small.Objects))
	return []step{
		{name: "S3 client, 1 object in 8 ranges at once", work: r.bigMiB(), unit: inBytes, do: func(ctx context.Context) error {
			return r.bare.Read(ctx, r.big, bareBig)
		}},
		{name: "mount, cold, random 4 KiB", work: float64(r.coldReads()), unit: inReads, before: cold.renew, do: func(ctx context.Context) error {
			return rig.Random(ctx, r.bigPath(cold.point()), r.big.Bytes(), r.coldReads(), 1, 1)
		}},
		{name: "mount, cold, sequential", work: r.bigMiB(), unit: inBytes, before: cold.renew, do: func(ctx context.Context) error {
			return rig.Sequential(ctx, r.bigPath(cold.point()))
		}},
		{name: "disk, write", before: cold.end, work: r.bigMiB(), unit: inBytes, do: func(ctx context.Context) error {
			return rig.WriteFile(ctx, filepath.Join(r.dir, "written"), r.big.Bytes())
		}},
		{name: "load job, large", work: r.bigMiB(), unit: inBytes, before: cold.free, do: load("/big")},
		{name: "S3 client, small objects", work: files, unit: inFiles, do: func(ctx context.Context) error {
			return r.bare.Read(ctx, r.small, bareSmall)
		}},
		{name: "mount, cold, small files", work: files, unit: inFiles, before: cold.renew, do: func(ctx context.Context) error {
			return rig.Epoch(ctx, cold.point(), r.small, smallReaders, 1)
		}},
		{name: "load job, small", work: files, unit: inFiles, before: cold.free, do: load("/small")},
	}
}

// coldReads is how many random reads of the large object are done cold.
func (r *report) coldReads() int { return min(randomCold, int(r.big.Bytes()>>20)) }

// coldMount is the mount of the cold cluster, anew for each use.
type coldMount struct {
	r    *report
	role *rig.Role
	at   int // among the measured processes
}

func (c *coldMount) point() string { return c.r.point("cold") }

// free unmounts and frees everything.
func (c *coldMount) free(ctx context.Context) error {
	if err := c.end(ctx); err != nil {
		return err
	}
	return c.r.cold.Run(ctx, io.Discard, c.r.log, "free", "/")
}

// renew frees everything and mounts.
func (c *coldMount) renew(ctx context.Context) (err error) {
	if err := c.free(ctx); err != nil {
		return err
	}
	if c.role, err = c.r.cold.Mount(ctx, c.point(), ""); err != nil {
		return err
	}
	c.at = len(c.r.procs)
	c.r.add("cold-mount", c.role.PID())
	return nil
}

func (c *coldMount) end(context.Context) error {
	if c.role == nil {
		return nil
	}
	role := c.role
	c.role = nil
	c.r.procs = append(c.r.procs[:c.at:c.at], c.r.procs[c.at+1:]...)
	return c.r.cold.Unmount(role)
}

// sequentialSteps read the large file, which is cached.
func (r *report) sequentialSteps() []step {
	sequential := func(name, root string) step {
		return step{name: name, work: r.bigMiB(), unit: inBytes, do: func(ctx context.Context) error {
			return rig.Sequential(ctx, r.bigPath(root))
		}}
	}
	return []step{
		sequential("disk, sequential", r.disk),
		sequential("mount, warm, sequential", r.point("ssd")),
		sequential("bare passthrough mount, sequential", r.point("bare-ssd")),
		sequential("mount, copying, sequential", r.point("copy")),
		sequential("bare copying mount, sequential", r.point("bare-copy")),
	}
}

// randomSteps read 4 KiB pages of the large file, which is cached.
func (r *report) randomSteps(seed uint64) (steps []step) {
	add := func(name, root string, n, readers, passes int) {
		n = min(n, int(r.big.Bytes()>>12)/2)
		steps = append(steps, step{name: name, work: float64(n * passes), unit: inReads, do: func(ctx context.Context) error {
			var err error
			for i := 0; i < passes && err == nil; i++ {
				err = rig.Random(ctx, r.bigPath(root), r.big.Bytes(), n, readers, seed+uint64(i))
			}
			return err
		}})
	}
	add("disk, random, 1 reader", r.disk, randomOne, 1, 1)
	add("bare passthrough mount, random, 1 reader", r.point("bare-ssd"), randomOne, 1, 1)
	add("mount, warm, random, 1 reader", r.point("ssd"), randomOne, 1, 1)
	add("disk, random, 8 readers", r.disk, randomMany, 8, 1)
	add("bare passthrough mount, random, 8 readers", r.point("bare-ssd"), randomMany, 8, 1)
	add("mount, warm, random, 8 readers", r.point("ssd"), randomMany, 8, 1)
	if r.mem != nil {
		add("tmpfs, random, 8 readers", r.localMemory(), randomReady, 8, readyPasses)
		add("bare passthrough mount of tmpfs, random, 8 readers", r.point("bare-memory"), randomReady, 8, readyPasses)
		add("mount, memory, random, 8 readers", r.point("memory"), randomReady, 8, readyPasses)
	}
	return steps
}

// smallSteps read, look at and open the small files, which are cached.
func (r *report) smallSteps(seed uint64) (steps []step) {
	type place struct{ name, root string }
	places := []place{
		{"disk", r.disk}, {"bare passthrough mount", r.point("bare-ssd")}, {"mount, warm", r.point("ssd")},
	}
	if r.mem != nil {
		places = append(places, []place{
			{"tmpfs", r.localMemory()}, {"bare passthrough mount of tmpfs", r.point("bare-memory")}, {"mount, memory", r.point("memory")},
		}...)
	}
	for _, p := range places {
		steps = append(steps, r.pythonStep(p.name, p.root, seed)...)
	}
	for _, p := range append(places, place{"mount, no-open", r.point("no-open")}) {
		steps = append(steps, step{name: p.name + ", small files", work: float64(len(r.small.Objects)), unit: inFiles, do: func(ctx context.Context) error {
			return rig.Epoch(ctx, p.root, r.small, smallReaders, seed)
		}})
	}
	for _, p := range places[:3] {
		steps = append(steps, step{name: p.name + ", stat", work: float64(len(r.small.Objects)), unit: inFiles, do: func(ctx context.Context) error {
			_, err := rig.StatTree(ctx, filepath.Join(p.root, "small"))
			return err
		}})
	}
	n := min(openCloses, len(r.small.Objects))
	for _, p := range append(places[:3:3], place{"mount, no-open", r.point("no-open")}) {
		steps = append(steps, step{name: p.name + ", open and close", work: float64(n), unit: inFiles, do: func(ctx context.Context) error {
			return rig.OpenClose(ctx, p.root, r.small, n)
		}})
	}
	return steps
}

// pythonStep reads the small files with readers in Python; none without it.
func (r *report) pythonStep(name, root string, seed uint64) []step {
	if r.python == nil {
		return nil
	}
	return []step{{
		name: name + ", small files, Python", work: float64(len(r.small.Objects)), unit: inFiles, do: r.python.Read,
		before: func(context.Context) error { return r.python.Prepare(root, r.small, smallReaders, seed) },
	}}
}
