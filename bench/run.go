package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

type options struct {
	redis, out, only, cases string
	duration                time.Duration
	repeats                 int
	extent                  extent
}

// An extent is how much is measured of what no flag says.
type extent struct {
	loads                    []load
	accounts, slots, limits  []int         // the sizes to which these grow
	waiting                  []int         // workers
	waitingSettle, waitingOf time.Duration // until all wait and know their turns; then so long is measured
	handOvers                int           // of a freed slot
}

// A load is how many ask at once.
type load struct {
	name               string
	callers, processes int
}

// title names a load in the output.
func (l load) title() string {
	return fmt.Sprintf("%s: %d callers in each of %d processes", l.name, l.callers, l.processes)
}

// The names of what only we have.
const (
	waitingWorkers = "growth: waiting workers"
	freedSlot      = "freed slot in use again"
	leasesInMemory = "memory"
)

// names lists all cases as the output names them.
func (e extent) names() (all []string) {
	for _, l := range e.loads {
		all = append(all, l.title())
	}
	for _, g := range growths {
		all = append(all, g.title())
	}
	return append(all, waitingWorkers, freedSlot, leasesInMemory)
}

// wants says whether -cases selects a case.
func (o options) wants(name string) bool { return strings.Contains(name, o.cases) }

// check returns an error for a choice that leaves nothing to measure.
func (o options) check() error {
	all := o.extent.names()
	if !slices.ContainsFunc(all, o.wants) {
		return fmt.Errorf("-cases %q: no case has this in its name; there are\n  %s", o.cases, strings.Join(all, "\n  "))
	}
	compared := all[:len(o.extent.loads)]
	for _, i := range impls {
		if strings.Contains(i.name, o.only) && (i.name == fleetlimit.name || slices.ContainsFunc(compared, o.wants)) {
			return nil
		}
	}
	var others []string
	for _, i := range impls {
		others = append(others, i.name)
	}
	return fmt.Errorf("-only %q: nobody of that name has the cases of -cases %q; there are\n  %s", o.only, o.cases, strings.Join(others, "\n  "))
}

// full is the benchmark. A test has a smaller one.
var full = extent{
	loads: []load{
		{"admission", 1, 1},
		{"admission", 16, 1},
		{"admission", 64, 1},
		{"admission", 256, 1},
		{"processes", 16, 4},
		{"processes", 16, 16},
	},
	accounts: []int{1, 10_000}, slots: []int{10, 10_000}, limits: []int{60, 1_000_000},
	waiting: []int{1, 1000}, waitingSettle: 20 * time.Second, waitingOf: 30 * time.Second,
	handOvers: 300,
}

func run(ctx context.Context, o options) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.redis == "" {
		dir, err := os.MkdirTemp("", "bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		server, err := redistest.Launch(dir)
		if err != nil {
			return err
		}
		defer server.Stop()
		o.redis = server.URL
	}
	opts, err := redis.ParseURL(o.redis)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(opts)
	defer rdb.Close()

	rows, err := compare(ctx, rdb, o)
	if err != nil {
		return err
	}
	more, err := alone(ctx, rdb, o)
	if err != nil {
		return err
	}
	rows = append(rows, more...)
	fmt.Print(table(rows))
	if o.out == "" {
		return nil
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

// alone measures what only we have, or what grows.
func alone(ctx context.Context, rdb *redis.Client, o options) (rows []row, err error) {
	add := func(name string, measure func() ([]row, error)) {
		if err == nil && o.wants(name) && strings.Contains(fleetlimit.name, o.only) {
			var more []row
			if more, err = measure(); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			rows = append(rows, more...)
		}
	}
	for _, g := range growths {
		add(g.title(), func() ([]row, error) { return grow(ctx, rdb, o, g) })
	}
	for _, size := range o.extent.waiting {
		add(waitingWorkers, func() ([]row, error) {
			r, err := queue(ctx, rdb, o, size)
			return []row{r}, err
		})
	}
	add(freedSlot, func() ([]row, error) {
		r, err := handOver(ctx, rdb, o.extent.handOvers)
		return []row{r}, err
	})
	add(leasesInMemory, func() ([]row, error) { return leaseMemory(ctx, rdb) })
	return rows, err
}

// compare measures everybody under every load. The repeats take turns, so that
// what disturbs the machine for a while disturbs all.
func compare(ctx context.Context, rdb *redis.Client, o options) ([]row, error) {
	var rows []row
	for _, l := range o.extent.loads {
		if !o.wants(l.title()) {
			continue
		}
		all := make([][]row, len(impls))
		for range o.repeats {
			for n, i := range impls {
				if !strings.Contains(i.name, o.only) {
					continue
				}
				r, err := measure(ctx, rdb, i, task{
					Impl: i.name, URL: o.redis, Account: "bench-" + rand.Text(),
					Callers: l.callers, Duration: o.duration,
				}, l.processes)
				if err != nil {
					return nil, fmt.Errorf("%s with %d callers in %d processes: %w", i.name, l.callers, l.processes, err)
				}
				r.Case = l.name
				all[n] = append(all[n], r)
			}
		}
		for _, repeats := range all {
			if len(repeats) > 0 {
				rows = append(rows, median(repeats))
			}
		}
	}
	return rows, nil
}

// median takes the median of every figure.
func median(rows []row) row {
	m := rows[0]
	m.Repeats = len(rows)
	for _, figure := range []func(*row) *float64{
		func(r *row) *float64 { return &r.PerSecond },
		func(r *row) *float64 { return &r.P50 },
		func(r *row) *float64 { return &r.P99 },
		func(r *row) *float64 { return &r.RedisCPU },
		func(r *row) *float64 { return &r.Commands },
		func(r *row) *float64 { return &r.ProcessCPU },
		func(r *row) *float64 { return &r.Allocs },
	} {
		values := make([]float64, 0, len(rows))
		for i := range rows {
			values = append(values, *figure(&rows[i]))
		}
		slices.SortFunc(values, func(a, b float64) int { return cmp.Compare(a, b) })
		*figure(&m) = values[len(values)/2]
	}
	return m
}
