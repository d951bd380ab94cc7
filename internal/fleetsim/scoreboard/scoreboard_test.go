package scoreboard

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
	"github.com/fleetlimit/fleetlimit/internal/race"
)

// The short form of the scoreboard: ours in every situation, each with one limit
// and one kind of window, such that all of them have their turn.
func TestGoalsAreReached(t *testing.T) {
	for i, s := range Catalogue {
		limit, window := 120, Windows[i%2]
		if race.Enabled && (i%3 != 0 || s.Name == "thousand") {
			continue // each takes ten times as long; make test plays all without it
		}
		if i%4 >= 2 && !race.Enabled && s.Name != "thousand" { // of which only the full form plays all
			limit = 600
		}
		r := Run{Situation: s, Strategy: fleetsim.Fleetlimit, Limit: limit, Window: window, Seed: 1}
		t.Run(r.Situation.Name, func(t *testing.T) {
			t.Parallel()
			r.Play(t)
			for _, c := range r.Missed() {
				t.Errorf("%s\n%s", c, r.Name())
			}
		})
	}
}

// What people use today is played in one situation, so that the comparison itself
// is known to run.
func TestOthersArePlayed(t *testing.T) {
	s, _ := Find("saturated")
	for _, strategy := range fleetsim.Strategies() {
		if strategy.Name == fleetsim.Fleetlimit.Name || race.Enabled && strings.HasPrefix(strategy.Name, "redis_rate") {
			continue
		}
		r := Run{Situation: s, Strategy: strategy, Limit: 60, Window: "sliding", Seed: 1}
		t.Run(strategy.Name, func(t *testing.T) {
			t.Parallel()
			r.Play(t)
			switch {
			case r.Row.Utilization < 0.8 || r.Row.Utilization > 1.001:
				t.Errorf("utilisation %.3f", r.Row.Utilization)
			case strategy.Name == fleetsim.Oracle.Name && r.Row.Own429 > 0:
				t.Errorf("the oracle was refused %d times", r.Row.Own429)
			case strategy.Name == fleetsim.Reactive.Name && r.Row.Own429 == 0:
				t.Error("who only reacts was never refused")
			}
		})
	}
}

func TestTheChartShowsEveryStrategyInWords(t *testing.T) {
	var rows []Row
	for _, s := range fleetsim.Strategies() {
		rows = append(rows, Row{Scenario: "saturated", Strategy: s.Name, Limit: 120, Window: "sliding", Own429: 17, TotalUtilization: 1.1})
	}
	svg := Chart(rows)
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range fleetsim.Strategies() {
		if words := called[s.Name]; words == "" || !strings.Contains(svg, ">"+words+"<") {
			t.Errorf("%s is not shown as %q", s.Name, words)
		}
	}
}

func TestRowsHaveTheFieldsThatReadersLookFor(t *testing.T) {
	var text strings.Builder
	if err := WriteJSON(&text, []Row{{Scenario: "burst"}, {}}); err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal([]byte(text.String()), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%v in %s", err, text.String())
	}
	for _, field := range strings.Fields(`scenario strategy limit window own_429 utilization total_utilization
		wait_p50_ms wait_p99_ms late_wait_p50_ms late_wait_p99_ms redis_commands_per_admission jain slot_violations`) {
		if _, ok := rows[0][field]; !ok {
			t.Errorf("no field %s", field)
		}
	}
}

func TestAMissedGoalSaysByHowMuch(t *testing.T) {
	for c, want := range map[Check]string{
		atMost("own 429s", 3, 1):                "own 429s: 3, want at most 1 (missed by 2)",
		atLeast("utilisation", 0.9, 0.99):       "utilisation: 0.9, want at least 0.99 (missed by 0.09)",
		atMost("late wait p99 ÷ p50", 1.2, 1.5): "late wait p99 ÷ p50: 1.2, want at most 1.5",
	} {
		if c.String() != want {
			t.Errorf("%q, want %q", c, want)
		}
	}
}
