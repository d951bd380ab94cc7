package coordinator

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"
)

// open returns a state in which all gates are open and nobody waits.
func open() *State {
	return &State{
		Account: "acme", Known: true, PolicyLimit: 600, Limit: 540, Headroom: 0.9, Window: time.Minute, Jitter: 250 * time.Millisecond,
		Used: 100, Budget: 540, Remaining: 440, Observed: time.Second, Strangers: -1, Alive: 2,
		Pace:      Pace{Credit: 5, Size: 10, Interval: 111 * time.Millisecond},
		Endpoints: []EndpointState{{Pattern: chat, Slots: 2}},
	}
}

func TestExplainNamesTheGateTheNumbersAndTheTime(t *testing.T) {
	waits := func(s *State) {
		s.Waiting, s.Queued = []Place{{Worker: "w1"}}, 1
	}
	for _, c := range []struct {
		name    string
		change  func(*State)
		kind    int // 0: budget alone, 1: the endpoint
		gate    Gate
		wait    time.Duration
		reason  string
		summary string
	}{
		{"all open", func(*State) {}, 0, "", 0, "", "Nobody waits, and there is room"},
		{"no worker", func(s *State) { s.Alive = 0 }, 0, "", 0, "", "No worker is alive"},
		{"an operator's pause", func(s *State) {
			s.Hold = &Hold{Left: 90 * time.Second, Since: time.Minute, Reason: "repairs", By: "ada"}
			s.Backoff = &Backoff{Left: time.Second, Reason: "status 429"}
		}, 0, GateBackoff, 90 * time.Second, "ada paused the account 1m0s ago (repairs), for 1m30s more", "Nothing moves: ada paused"},
		{"the API's pause", func(s *State) {
			s.Hold = &Hold{Left: time.Second, By: "ada"}
			s.Backoff = &Backoff{Left: 12 * time.Second, Since: 3 * time.Second, Reason: "status 429", Worker: "w3", Strikes: 2}
		}, 1, GateBackoff, 12 * time.Second, "(status 429, seen by w3, 2 times in a row), for 12s more", "Nothing moves: the API paused"},
		{"Redis was away", func(s *State) { s.Backoff = &Backoff{Left: 4 * time.Second, Reason: ReasonAway} },
			0, GateBackoff, 4 * time.Second, "Redis was away", "Nothing moves: Redis was away"},
		{"the endpoint's pause", func(s *State) {
			s.Endpoints[0].Backoff = &Backoff{Left: 7 * time.Second, Reason: "status 429, cap"}
		}, 1, GateBackoff, 7 * time.Second, "the API paused this endpoint", "Nobody waits"},
		{"the pace", func(s *State) { waits(s); s.Pace.Credit, s.Pace.Wait = 0.2, 90*time.Millisecond },
			0, GatePace, 90 * time.Millisecond, "one request every 111ms, and the bucket holds 0.2 of 10: the next in 90ms", "It moves, at the pace of the limit"},
		{"the window", func(s *State) {
			waits(s)
			s.Used, s.Foreign, s.Reserve, s.Remaining, s.WindowWait = 380, 140, 20, 0, 2500*time.Millisecond
		}, 0, GateWindow, 2500 * time.Millisecond, "of 540 requests in 1m0s the fleet has used 380, strangers 140, and 20 are kept free for them: the next fits in 2.5s", "1 worker waits for the window"},
		{"the slots", func(s *State) {
			e := &s.Endpoints[0]
			e.InUse, e.Waiting, e.Queue = 2, 1, []Place{{Worker: "w1", Endpoint: chat}}
			e.Leases = []Lease{{Worker: "w2", Held: 90 * time.Second, Left: 20 * time.Second}, {Worker: "w3", Held: time.Second, Left: 30 * time.Second}}
		}, 1, GateSlots, 0, "2 of 2 slots in use, the longest for 1m30s by w2", "1 worker waits, for " + chat + ": 2 of 2 slots"},
		{"turns", waits, 0, GateTurn, 0, "1 worker waits", "the gates are open"},
	} {
		s := open()
		c.change(s)
		d := s.Explain()
		if len(d.Kinds) != 2 || !strings.Contains(d.Summary, c.summary) {
			t.Errorf("%s: summary %q, want %q", c.name, d.Summary, c.summary)
			continue
		}
		if x := d.Kinds[c.kind]; x.Gate != c.gate || x.Wait != c.wait || !strings.Contains(x.Reason, c.reason) {
			t.Errorf("%s: gate %q for %v: %q; want %q, %v, %q", c.name, x.Gate, x.Wait, x.Reason, c.gate, c.wait, c.reason)
		}
	}
}

func TestExplainNotesWhatElseMatters(t *testing.T) {
	s := open()
	s.Reported, s.Foreign, s.Reserve, s.Strangers, s.Rejected = 60, 30, 4, 2*time.Second, 3
	s.Drained = []Drain{{Worker: "w2", Left: time.Hour, By: "ada", Reason: "repairs"}}
	text := strings.Join(s.Explain().Notes, "\n")
	for _, part := range []string{"a limit of 60", "30 requests in the window, seen 2s ago", "429 3 times", "w2 is drained by ada (repairs)", "drain --undo w2 -a acme"} {
		if !strings.Contains(text, part) {
			t.Errorf("the notes do not tell %q:\n%s", part, text)
		}
	}
}

// Whatever Redis says, a state is bounded and can be shown.
func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"account":{"limit":1e300,"window_ms":-5,"used":-1,"credit":-1e99,"observed_ms":1e99,"slots":{"POST /mave/chat":1e18},"drained":{"a\u001b":{"left_ms":1}}}}`))
	f.Add([]byte(`{"backoff":{"left_ms":1e30,"reason":"\u0000\n","hold":{"left_ms":5,"by":"\ud800"}},"queue":{"waiting":-3,"places":[{"worker":"\u202e","waited_ms":-1}]}}`))
	f.Add([]byte(`{"slots:POST /mave/chat":{"in_use":1e20,"leases":[{"worker":"` + strings.Repeat("é", 400) + `","held_ms":1}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseState("acme", []string{chat}, text)
		if err != nil {
			return
		}
		d := s.Explain()
		shown := []string{d.Summary}
		shown = append(shown, d.Notes...)
		for _, k := range d.Kinds {
			shown = append(shown, k.Reason, k.Advice)
		}
		for _, w := range s.Workers {
			shown = append(shown, w.Worker)
		}
		for _, line := range shown {
			if len(line) > 4000 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q cannot be shown", line)
			}
		}
		for name, n := range map[string]int{"limit": s.Limit, "used": s.Used, "foreign": s.Foreign, "remaining": s.Remaining, "alive": s.Alive, "in use": s.Endpoints[0].InUse} {
			if n < 0 || n > maxLimit {
				t.Errorf("%s %d", name, n)
			}
		}
		if s.Window < 0 || s.WindowWait < 0 || math.IsNaN(s.Pace.Credit) || s.Paused() < 0 {
			t.Errorf("%+v", s)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}

func TestAnInspectionOfGarbage(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		r.mini.HSet("fleetlimit:{acme}:account", "limit", "1e300", "window_ms", "nan", "headroom", "inf", "seq", "-1", "slots:"+chat, "many",
			"drain:w\x1b", "1e15", "oldest_ms", "x", "own", "\xff")
		r.mini.HSet("fleetlimit:{acme}:backoff", "until_ms", "1e15", "length_ms", "nan", "hold_until_ms", "1e15", "hold_ms", "1e99", "hold_by", "\x1b[31m")
		r.mini.ZAdd("fleetlimit:{acme}:queue", math.Inf(-1), "no place")
		r.mini.ZAdd("fleetlimit:{acme}:workers", math.Inf(1), "w\x00")
		r.mini.ZAdd("fleetlimit:{acme}:slots:"+chat, math.Inf(1), "::")
		r.mini.RPush("fleetlimit:{acme}:timeline", "garbage")
		s, err := r.operator().Account(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range s.Workers {
			if strings.ContainsAny(w.Worker, "\x00\x1b") {
				t.Errorf("worker %q", w.Worker)
			}
		}
		if s.Hold != nil && (s.Hold.Left > 366*24*time.Hour || strings.Contains(s.Hold.By, "\x1b")) {
			t.Errorf("hold %+v", s.Hold)
		}
		if _, err := r.operator().Timeline(t.Context(), "acme"); err != nil {
			t.Error(err)
		}
		var bad *KeyError
		r.mini.Del("fleetlimit:{acme}:queue")
		r.mini.Set("fleetlimit:{acme}:queue", "of another type")
		if _, err := r.operator().Account(t.Context(), "acme"); !errors.As(err, &bad) || bad.Key != "fleetlimit:{acme}:queue" {
			t.Errorf("a key of another type: %v", err)
		}
		r.mini.Del("fleetlimit:{acme}:timeline")
		r.mini.Set("fleetlimit:{acme}:timeline", "of another type")
		if _, err := r.operator().Timeline(t.Context(), "acme"); !errors.As(err, &bad) || bad.Key != "fleetlimit:{acme}:timeline" {
			t.Errorf("a key of another type: %v", err)
		}
	})
}
