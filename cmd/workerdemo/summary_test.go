package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// finished is a fleet of two whose two requests have succeeded.
func finished() *fleet {
	f := &fleet{
		plan: plan{Tier: mavera.Basic, Headroom: 1}, portions: []portion{{mavera.Chat, 2}},
		tally: newTally([]string{"w1", "w2"}),
	}
	for _, name := range []string{"w1", "w2"} {
		f.tally.handed(name)
		f.tally.sent(name, report{Waited: 1500 * time.Microsecond})
		f.tally.answered(name, 200)
		f.tally.done(name, "", true)
	}
	return f
}

func TestJSONHasEveryField(t *testing.T) {
	always := []string{"workers", "requests", "succeeded", "failed", "responses_429", "duration_seconds",
		"utilization", "wait_p50_ms", "wait_p99_ms"}
	ofTheMock := []string{"limit_violations", "slot_violations", "max_in_flight"}
	for name, mock := range map[string]*mockapi.Stats{"mock": {MaxInFlight: map[string]int{mavera.Chat: 2, mavera.FocusGroups: 0}}, "no mock": nil} {
		var out bytes.Buffer
		if err := finished().summarize(mock).writeJSON(&out); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: not one line: %s", name, out.String())
		}
		var got map[string]any
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		for _, field := range always {
			if _, ok := got[field].(float64); !ok {
				t.Errorf("%s: %s is %v", name, field, got[field])
			}
		}
		for _, field := range ofTheMock {
			value, ok := got[field]
			if !ok || (value == nil) != (mock == nil) {
				t.Errorf("%s: %s is %v, present %t", name, field, value, ok)
			}
		}
		if mock != nil {
			flights := got["max_in_flight"].(map[string]any)
			if keys := slices.Collect(maps.Keys(flights)); len(keys) != 1 || flights[mavera.Chat] != 2. {
				t.Errorf("max_in_flight is %v, want that of the mix", flights)
			}
		}
		if got["wait_p50_ms"] != 1.5 || got["workers"] != 2. {
			t.Errorf("%s: wait_p50_ms %v, workers %v", name, got["wait_p50_ms"], got["workers"])
		}
	}
}

func TestOnlyACleanRunIsOK(t *testing.T) {
	second := 1.
	tests := []struct {
		name string
		f    func(f *fleet, m *mockapi.Stats)
		want bool
	}{
		{"clean", func(*fleet, *mockapi.Stats) {}, true},
		{"a request failed", func(f *fleet, _ *mockapi.Stats) { f.tally.done("w1", "500", true) }, false},
		{"a request is missing", func(f *fleet, _ *mockapi.Stats) { f.portions[0].requests++ }, false},
		{"a 429 that was retried", func(f *fleet, _ *mockapi.Stats) { f.tally.answered("w1", 429) }, false},
		{"a 429 that only the mock knows", func(_ *fleet, m *mockapi.Stats) { m.Responses429 = 1 }, false},
		{"the limit was violated", func(_ *fleet, m *mockapi.Stats) { m.LimitViolations = 1 }, false},
		{"a cap was violated", func(_ *fleet, m *mockapi.Stats) { m.SlotViolations = 1 }, false},
		{"a pause was violated", func(_ *fleet, m *mockapi.Stats) { m.PauseViolations = 1 }, false},
		{"interrupted", func(f *fleet, _ *mockapi.Stats) { f.stopped = errInterrupted }, false},
		{"given up", func(f *fleet, _ *mockapi.Stats) { f.stopped = errors.New("no worker is left") }, false},
		{"a worker crashed", func(f *fleet, _ *mockapi.Stats) { f.tally.buried("w2", "exit status 2") }, false},
		{"a worker was killed and its slots came back", func(f *fleet, _ *mockapi.Stats) {
			f.tally.buried("w2", "killed")
			f.victim = &victim{name: "w2", slotsBack: time.Duration(second)}
		}, true},
		{"a worker was killed and its slots stayed away", func(f *fleet, _ *mockapi.Stats) {
			f.tally.buried("w2", "killed")
			f.victim = &victim{name: "w2", slotsBack: -1}
		}, false},
	}
	for _, test := range tests {
		f, m := finished(), mockapi.Stats{}
		test.f(f, &m)
		if got := f.summarize(&m); got.ok() != test.want {
			t.Errorf("%s: ok is %t: %+v", test.name, got.ok(), got)
		}
	}
}

func TestTheLimitIsTheLowerOfTierAndReport(t *testing.T) {
	for reported, want := range map[int]int{0: 120, 60: 60, 600: 120} {
		f := finished()
		f.state = &coordinator.State{Reported: reported}
		if got := f.summarize(nil).Limit; got != want {
			t.Errorf("the API reported %d: limit %d, want %d", reported, got, want)
		}
	}
}

func TestTheTableTellsTheSame(t *testing.T) {
	f := finished()
	f.tally.buried("w2", "killed")
	f.victim = &victim{name: "w2", takenOver: 7, slots: 3, slotsBack: 2 * time.Second}
	f.tally.done("w1", "500 Internal Server Error: oops", true)
	var out bytes.Buffer
	f.summarize(&mockapi.Stats{MaxInFlight: map[string]int{mavera.Chat: 2}}).writeTable(&out)
	for _, want := range []string{"wait p99", "w2", "(killed)", "2 of 2 requests succeeded", "of the tier's 120 per minute",
		"violations of the limit: 0, of slots: 0", "most in flight at POST /mave/chat: 2",
		"the others finished 7 requests of it", "1 × 500 Internal Server Error: oops"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

func TestTheLineTellsWhatGoesOn(t *testing.T) {
	s := snapshot{perMinute: 12, waiting: 3}
	if got, want := s.String(), "12 requests/min · waiting 3 · 429s 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.known, s.limit, s.remaining, s.slots = true, 600, 588, []string{"chat 2/10"}
	if got, want := s.String(), "12 requests/min · remaining 588/600 · slots chat 2/10 · waiting 3 · no backoff · 429s 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.failed, s.backoff = 1, &coordinator.Backoff{Left: 1234 * time.Millisecond, Reason: "status 429"}
	if got, want := s.String(), "12 requests/min · remaining 588/600 · slots chat 2/10 · waiting 3 · backoff 1.2s more (status 429) · 429s 0 · failed 1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWithoutATerminalThereArePlainLines(t *testing.T) {
	var out bytes.Buffer
	v := &plainView{out: &out}
	for i := range 10 {
		v.show(snapshot{elapsed: time.Duration(i) * 500 * time.Millisecond, done: i, total: 9})
	}
	v.log("w%d is dead", 1)
	v.close()
	want := "  2.0 s  4/9 done · 0 requests/min · waiting 0 · 429s 0\n" +
		"  4.0 s  8/9 done · 0 requests/min · waiting 0 · 429s 0\n" +
		"  4.5 s  9/9 done · 0 requests/min · waiting 0 · 429s 0\n" +
		"w1 is dead\n"
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
}
