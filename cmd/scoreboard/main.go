// Command scoreboard plays situations of a fleet in virtual time, with this
// project and with what people use today, and compares what came of them. It
// prints a table, writes it as JSON and as a chart, and ends with an error if
// this project misses one of its goals.
//
//	go run ./cmd/scoreboard                                    # everything
//	go run ./cmd/scoreboard -scenario stranger -strategy fleetlimit -limit 120 -window sliding -seed 3
//
// Virtual time comes from testing/synctest, which runs inside a test only. So the
// program is one: [testing.Main] runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
	"github.com/fleetlimit/fleetlimit/internal/fleetsim/scoreboard"
)

type options struct {
	situations []scoreboard.Situation
	strategies []fleetsim.Strategy
	limits     []int
	windows    []string
	seeds      []uint64
	json       string
	chart      string
}

func main() {
	debug.SetGCPercent(400) // what a script leaves behind is small and much
	opts, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "scoreboard:", err)
		os.Exit(2)
	}
	os.Args = os.Args[:1] // the flags of package testing keep their defaults
	all := func(_, _ string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "scoreboard", F: opts.run}}, nil, nil)
}

// parse reads the flags; without one, everything is played.
func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("scoreboard", flag.ExitOnError)
	scenario := f.String("scenario", "", "scenarios to play, separated by commas (default all)")
	strategy := f.String("strategy", "", "strategies to play, separated by commas (default all)")
	limit := f.String("limit", "120,600", "requests per minute, separated by commas")
	window := f.String("window", strings.Join(scoreboard.Windows, ","), "kinds of window, separated by commas")
	seed := f.Uint64("seed", 1, "seed of the first repetition")
	repeat := f.Int("repeat", 1, "number of seeds to play, counted from -seed")
	f.StringVar(&o.json, "json", "", "file to write the rows to")
	f.StringVar(&o.chart, "chart", "", "file to write the chart to, as SVG")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	for _, name := range list(*scenario) {
		s, ok := scoreboard.Find(name)
		if !ok {
			return o, fmt.Errorf("-scenario: no scenario %q", name)
		}
		o.situations = append(o.situations, s)
	}
	if *scenario == "" {
		o.situations = scoreboard.Catalogue
	}
	known := fleetsim.Strategies()
	for _, name := range list(*strategy) {
		i := slices.IndexFunc(known, func(s fleetsim.Strategy) bool { return s.Name == name })
		if i < 0 {
			return o, fmt.Errorf("-strategy: no strategy %q", name)
		}
		o.strategies = append(o.strategies, known[i])
	}
	if *strategy == "" {
		o.strategies = known
	}
	for _, text := range list(*limit) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 10 || n > 10_000 {
			return o, fmt.Errorf("-limit: %q is not a number of requests from 10 to 10000", text)
		}
		o.limits = append(o.limits, n)
	}
	for _, name := range list(*window) {
		if !slices.Contains(scoreboard.Windows, name) {
			return o, fmt.Errorf("-window: %q is none of %s", name, strings.Join(scoreboard.Windows, ", "))
		}
		o.windows = append(o.windows, name)
	}
	if *repeat < 1 || *repeat > 10_000 {
		return o, fmt.Errorf("-repeat: %d is not a number from 1 to 10000", *repeat)
	}
	for i := range *repeat {
		o.seeds = append(o.seeds, *seed+uint64(i))
	}
	return o, nil
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// run is the whole of it.
func (o options) run(t *testing.T) {
	var runs []scoreboard.Run
	for _, seed := range o.seeds {
		runs = append(runs, scoreboard.Plan(o.situations, o.strategies, o.limits, o.windows, seed)...)
	}
	start := time.Now()
	o.play(t, runs)

	rows := make([]scoreboard.Row, len(runs))
	missed := 0
	for i, r := range runs {
		rows[i] = r.Row
	}
	fail(t, scoreboard.WriteTable(os.Stdout, rows))
	for _, r := range runs {
		for _, c := range r.Missed() {
			missed++
			fmt.Printf("missed: %s\n        %s\n", c, r.Name())
		}
	}
	fmt.Printf("%d runs in %v, %d goals missed\n", len(runs), time.Since(start).Round(time.Second), missed)
	if o.json != "" {
		fail(t, scoreboard.WriteJSONFile(o.json, rows))
	}
	if o.chart != "" {
		fail(t, scoreboard.WriteChartFile(o.chart, rows))
	}
	if missed > 0 {
		t.Fail()
	}
}

// play plays the runs, as many at once as there are cores, and says on stderr which
// one has ended.
func (o options) play(t *testing.T, runs []scoreboard.Run) {
	var mu sync.Mutex
	done := 0
	t.Run("runs", func(t *testing.T) {
		for i := range runs {
			t.Run(runs[i].Name(), func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				runs[i].Play(t)
				mu.Lock()
				defer mu.Unlock()
				done++
				fmt.Fprintf(os.Stderr, "%4d/%d  %6.1fs  %s\n", done, len(runs), time.Since(began).Seconds(), runs[i].Name())
				for _, c := range runs[i].Missed() {
					fmt.Fprintln(os.Stderr, "            ", c)
				}
			})
		}
	})
}

func fail(t *testing.T, err error) {
	if err != nil {
		t.Error(err)
	}
}
