package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary a measuring process where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-child" {
		main()
		return
	}
	os.Exit(m.Run())
}

// miniature is the whole benchmark in a few seconds: every case, on little.
var miniature = extent{
	loads:    []load{{"admission", 1, 1}, {"admission", 16, 1}, {"processes", 2, 2}},
	accounts: []int{1, 3}, slots: []int{10, 30}, limits: []int{60, 600},
	waiting: []int{1, 4}, waitingSettle: 200 * time.Millisecond, waitingOf: 200 * time.Millisecond,
	handOvers: 3,
}

func TestEveryCaseIsMeasuredAndWritten(t *testing.T) {
	// With the race detector each of the many processes would sleep a second at its end.
	t.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	o := options{out: filepath.Join(t.TempDir(), "bench.json"), duration: 10 * time.Millisecond, repeats: 1, extent: miniature}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(o.out)
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}

	// What docs/performance.md compares, and what it tells of ours alone.
	var want []string
	for _, l := range miniature.loads {
		for _, impl := range []string{
			"fleetlimit", "redis_rate", "redis_rate+autopipeline", "redis_rate+semaphore", "mennanov/limiters (its commands)",
			"throttled/v2", "rueidislimiter", "redislock", "empty script", "PING",
		} {
			want = append(want, fmt.Sprintf("%s: %s, %d callers, %d processes", impl, l.name, l.callers, l.processes))
		}
	}
	for _, ours := range []string{
		"growth: accounts, 1 callers, 1 processes, size 1",
		"growth: accounts, 1 callers, 1 processes, size 3",
		"growth: slots in use, 1 callers, 1 processes, size 10",
		"growth: slots in use, 1 callers, 1 processes, size 30",
		"growth: limit per minute, half of it used, 1 callers, 1 processes, size 60",
		"growth: limit per minute, half of it used, 1 callers, 1 processes, size 600",
		"growth: waiting workers, 100 callers, 1 processes, size 1",
		"growth: waiting workers, 25 callers, 1 processes, size 4",
		"freed slot in use again, 1 callers, 2 processes",
		"memory, 1 callers, 1 processes, size 10",
		"memory, 1 callers, 1 processes, size 1000",
	} {
		want = append(want, "fleetlimit: "+ours)
	}
	var got []string
	for _, r := range rows {
		name := fmt.Sprintf("%v: %v, %v callers, %v processes", r["impl"], r["case"], r["callers"], r["processes"])
		if r["size"] != nil {
			name += fmt.Sprintf(", size %v", r["size"])
		}
		got = append(got, name)
		checkFigures(t, name, r)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the rows are\n%q\nwant\n%q", got, want)
	}
}

// A name that the output has, or a part of one, selects what it names; another is an error
// that says which there are.
func TestCasesAreSelectedByTheNamesInTheOutput(t *testing.T) {
	t.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	for _, test := range []struct {
		cases, only string
		want        []string // of the output, each row's case and size
	}{
		{"growth: accounts", "", []string{"growth: accounts 1", "growth: accounts 3"}},
		{"growth: limit per minute, half of it used", "", []string{"growth: limit per minute, half of it used 60", "growth: limit per minute, half of it used 600"}},
		{"freed slot in use again", "", []string{"freed slot in use again 0"}},
		{"memory", "", []string{"memory 10", "memory 1000"}},
		{"admission: 16 callers in each of 1 processes", "PING", []string{"admission 0"}},
		{"admission", "PING", []string{"admission 0", "admission 0"}},
	} {
		o := options{out: filepath.Join(t.TempDir(), "bench.json"), duration: 10 * time.Millisecond, repeats: 1, extent: miniature, cases: test.cases, only: test.only}
		if err := run(t.Context(), o); err != nil {
			t.Errorf("-cases %q: %v", test.cases, err)
			continue
		}
		text, err := os.ReadFile(o.out)
		if err != nil {
			t.Fatal(err)
		}
		var rows []row
		if err := json.Unmarshal(text, &rows); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rows {
			got = append(got, fmt.Sprint(r.Case, " ", r.Size))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("-cases %q measured %q, want %q", test.cases, got, test.want)
		}
	}
	for _, test := range []struct{ cases, only, says string }{
		{"growth: acounts", "", `-cases "growth: acounts"`},
		{"", "redis_late", `-only "redis_late"`},
		{"growth", "redis_rate", `-only "redis_rate"`}, // what grows is ours alone
	} {
		err := run(t.Context(), options{redis: "redis://127.0.0.1:1", extent: miniature, cases: test.cases, only: test.only})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("-cases %q -only %q: error %v, want one that names the value", test.cases, test.only, err)
			continue
		}
		names := miniature.names()
		if test.only != "" {
			names = []string{"fleetlimit", "PING"}
		}
		for _, name := range names {
			if !strings.Contains(err.Error(), "\n  "+name) {
				t.Errorf("-cases %q -only %q: the error %q does not list %q", test.cases, test.only, err, name)
			}
		}
	}
}

// checkFigures looks whether a row has its figures, and those that are measured in its
// case are above zero.
func checkFigures(t *testing.T, name string, r map[string]any) {
	t.Helper()
	work := []string{"admissions_per_second", "redis_cpu_us_per_admission", "commands_per_admission"}
	measured := append(work, "p50_us", "p99_us")
	switch {
	case r["case"] == "growth: waiting workers":
		measured = work
	case r["case"] == "freed slot in use again":
		measured = []string{"p50_us", "p99_us"}
	case r["case"] == "memory":
		measured = []string{"bytes_per_account", "bytes_per_lease"}
	case r["impl"] == "PING": // a few of them can take less than the microsecond that Redis counts
		measured = []string{"admissions_per_second", "p50_us", "p99_us", "commands_per_admission"}
	}
	for _, figure := range []string{
		"admissions_per_second", "p50_us", "p99_us", "redis_cpu_us_per_admission", "commands_per_admission",
		"redis_process_cpu_us_per_admission", "allocations_per_admission",
	} {
		if x, ok := r[figure].(float64); !ok || x < 0 {
			t.Errorf("%s: %s is %v", name, figure, r[figure])
		}
	}
	for _, figure := range measured {
		if x, _ := r[figure].(float64); x <= 0 {
			t.Errorf("%s: %s is %v, want more than nothing", name, figure, r[figure])
		}
	}
}
