package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/integration/fleet"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A toxic makes a wire bad.
type toxic struct {
	kind, direction string
	attributes      map[string]int
}

// startWiredFleet starts four workers, each with wires of its own.
func startWiredFleet(t *testing.T, callTimeout time.Duration) *running {
	t.Helper()
	s := redistest.Start(t, "--maxclients", "1000") // not a shared one: the wires lead to its address
	return startFleetOf(t, s.URL, strings.TrimPrefix(s.URL, "redis://"), callTimeout)
}

func TestFaultsBetweenWorkersAndRedis(t *testing.T) {
	t.Parallel()
	r := startWiredFleet(t, time.Minute)
	for _, f := range []struct {
		name   string
		toxics []toxic
		of     int // workers that it hits
		served int // calls of each while it lasts
	}{
		{"latency with jitter", []toxic{{"latency", fleet.Replies, map[string]int{"latency": 30, "jitter": 25}}}, 4, 10},
		{"bandwidth", []toxic{{"bandwidth", fleet.Replies, map[string]int{"rate": 8}}, {"bandwidth", fleet.Requests, map[string]int{"rate": 32}}}, 4, 10},
		{"bytes one by one", []toxic{{"slicer", fleet.Replies, map[string]int{"average_size": 2, "size_variation": 1, "delay": 100}}}, 4, 10},
		{"half-open, replies lost", []toxic{{"timeout", fleet.Replies, map[string]int{"timeout": 0}}}, 4, 3},
		{"half-open, requests lost", []toxic{{"timeout", fleet.Requests, map[string]int{"timeout": 0}}}, 4, 3},
		{"reset in mid-reply", []toxic{{"limit_data", fleet.Replies, map[string]int{"bytes": 700}}}, 4, 5},
		{"reset", []toxic{{"reset_peer", fleet.Replies, map[string]int{"timeout": 0}}}, 4, 3},
	} {
		t.Run(f.name, func(t *testing.T) {
			r.t = t
			r.spoil(r.toRedis[:f.of], f.toxics, func() { r.serves(f.served) })
			r.serves(10)
			r.noViolation()
		})
	}
	r.t = t
	r.carefully("lease lost")
}

func TestFaultsBetweenWorkersAndTheAPI(t *testing.T) {
	t.Parallel()
	r := startWiredFleet(t, 10*time.Second) // a half-open connection costs a call its deadline
	for _, f := range []struct {
		name   string
		toxics []toxic
		of     int
		served int
	}{
		{"latency with jitter", []toxic{{"latency", fleet.Requests, map[string]int{"latency": 100, "jitter": 90}}, {"latency", fleet.Replies, map[string]int{"latency": 200, "jitter": 190}}}, 4, 10},
		{"bandwidth", []toxic{{"bandwidth", fleet.Replies, map[string]int{"rate": 8}}}, 4, 10},
		{"half-open, replies lost", []toxic{{"timeout", fleet.Replies, map[string]int{"timeout": 0}}}, 2, 0},
		{"half-open, requests lost", []toxic{{"timeout", fleet.Requests, map[string]int{"timeout": 0}}}, 2, 0},
		{"reset in mid-reply", []toxic{{"limit_data", fleet.Replies, map[string]int{"bytes": 600}}}, 4, 2},
		{"reset", []toxic{{"reset_peer", fleet.Replies, map[string]int{"timeout": 0}}}, 2, 0},
	} {
		t.Run(f.name, func(t *testing.T) {
			r.t = t
			r.spoil(r.toAPI[:f.of], f.toxics, func() {
				r.serves(f.served)
				r.serve(10, r.workers[f.of:]...) // the others go on
			})
			r.serves(10)
			r.noViolation()
		})
	}
	r.t = t
	r.carefully("network", "deadline")
}

// spoil makes wires bad while something goes on.
func (r *running) spoil(wires []*fleet.Wire, toxics []toxic, during func()) {
	r.t.Helper()
	for _, w := range wires {
		for _, x := range toxics {
			if err := w.Add(x.kind, x.direction, x.attributes); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	during()
	for _, w := range wires {
		w.Heal()
	}
}

func (r *running) noViolation() {
	r.t.Helper()
	if s := r.api.Stats(); fleet.Violations(s) > 0 {
		r.t.Errorf("the judge: violations of the limit %d, of slots %d, of pauses %d", s.LimitViolations, s.SlotViolations, s.PauseViolations)
	}
}

// A worker that is cut off goes on with its share, while the others have the whole
// budget, but for what is kept free for it, and all slots. While Redis keeps its leases
// nothing can go wrong with slots; after that it may use its part of them, one of four,
// beside theirs.
func TestOneWorkerOfFourIsPartitioned(t *testing.T) {
	t.Parallel()
	r := startWiredFleet(t, time.Minute)
	r.serves(10)
	time.Sleep(fleetPolicy.LeaseTTL) // or more: who is not known to all yet has no share
	r.toRedis[0].Cut()
	r.serve(40, r.workers[1:]...)
	r.serve(5, r.workers[0])
	if err := r.toRedis[0].Mend(); err != nil {
		t.Fatal(err)
	}
	r.serves(10)
	stats, wrong := r.end()
	t.Logf("429s: %d; violations of the limit %d, of slots %d, of pauses %d; callers have seen %v",
		stats.Responses429, stats.LimitViolations, stats.SlotViolations, stats.PauseViolations, wrong)
	// A call too many at an endpoint is answered with a pause of that endpoint.
	if most := int64(fleetPolicy.Limit / 4); stats.LimitViolations > 0 || stats.SlotViolations > most || stats.PauseViolations > 0 {
		t.Errorf("more violations than calls at once of one worker, %d", most)
	}
	delete(wrong, "lease lost")
	if len(wrong) > 0 {
		t.Errorf("callers have seen %v", wrong)
	}
}
