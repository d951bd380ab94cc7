package fleetsim

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// story is a scenario as it was drawn, and what may be expected of it.
type story struct {
	Scenario
	told []string // what happens, in words
	// alone tells that nobody but the fleet uses the key and that its limit stays,
	// so that no 429 has an excuse.
	alone bool
	// deaf is how long in all nobody could be served: outages, pauses, slots that
	// a dead worker holds.
	deaf time.Duration
	// slowest is the smallest share of the limit that the fleet may count on.
	slowest float64
	crashes bool
	killed  []time.Duration
	flushed []time.Duration
	lowered []time.Duration // when the limit fell
	back    []time.Duration // when Redis was there again
	jobs    bool
	keep    bool          // the API goes on with calls whose client has gone
	longest time.Duration // of a call
}

func (s *story) happens(format string, args ...any) {
	s.told = append(s.told, fmt.Sprintf(format, args...))
}

func (s story) String() string { return strings.Join(s.told, "\n") }

func drawSeconds(t *rapid.T, low, high int, label string) time.Duration {
	return time.Duration(rapid.IntRange(low, high).Draw(t, label)) * time.Second
}

func drawMillis(t *rapid.T, low, high int, label string) time.Duration {
	return time.Duration(rapid.IntRange(low, high).Draw(t, label)) * time.Millisecond
}

func drawStory(t *rapid.T) story {
	s := story{alone: true, slowest: 1}
	s.Seed = rapid.Uint64Range(1, 1<<32).Draw(t, "seed")
	s.Length = drawSeconds(t, 180, 3600, "length")
	s.drawAPI(t)
	s.drawFleet(t)
	for range rapid.IntRange(0, 4).Draw(t, "events") {
		s.drawEvent(t)
	}
	return s
}

func (s *story) drawAPI(t *rapid.T) {
	s.API.Limit = rapid.SampledFrom([]int{5, 10, 10, 20, 20, 30, 60}).Draw(t, "limit")
	s.API.Window = time.Minute
	s.API.Mode = rapid.SampledFrom([]mockapi.Mode{mockapi.Sliding, mockapi.Fixed}).Draw(t, "mode")
	s.API.Phase = drawMillis(t, 0, 59_999, "phase")
	s.API.Travel = drawMillis(t, 1, 250, "travel")
	mean := drawMillis(t, 20, 5000, "latency")
	s.API.Latency = map[string]mockapi.Latency{
		mockapi.PostResponses: {Mean: mean, Jitter: rapid.Float64Range(0, 1).Draw(t, "spread")},
		// A lease of a dead worker outlives its calls, which the API goes on with.
		mockapi.PostMaveChat:    {Mean: drawSeconds(t, 1, 14, "chat"), Jitter: 1},
		mockapi.PostFocusGroups: {Mean: drawSeconds(t, 1, 14, "group"), Jitter: 1},
	}
	s.longest = max(2*mean, 30*time.Second)
	s.API.JobDuration = mockapi.Range{Min: 20 * time.Second, Max: 3 * time.Minute}
	s.API.Rounding = rapid.SampledFrom([]mockapi.Rounding{mockapi.RoundUp, mockapi.RoundDown, mockapi.RoundNearest}).Draw(t, "rounding")
	s.API.ClockOffset = drawSeconds(t, -7200, 7200, "offset")
	keep, late, full := rapid.Bool().Draw(t, "keep broken"), rapid.Bool().Draw(t, "headers at response"), rapid.Bool().Draw(t, "reset full window")
	s.keep = keep
	s.API.Config = func(c *mockapi.Config) {
		c.KeepBroken, c.HeadersAtResponse, c.ResetFullWindow = keep, late, full
		c.Grace = 500 * time.Millisecond
	}
	s.happens("seed %d, %v: limit %d, %s, phase %v, travel ≤ %v, latency %v, rounding %s, clock %v, keep broken %t, headers at response %t, reset full window %t",
		s.Seed, s.Length, s.API.Limit, s.API.Mode, s.API.Phase, s.API.Travel, s.API.Latency, s.API.Rounding, s.API.ClockOffset, keep, late, full)
}

func (s *story) drawFleet(t *rapid.T) {
	s.Fleet.Processes = rapid.IntRange(1, 5).Draw(t, "processes")
	s.Fleet.Skew = drawSeconds(t, 0, 3600, "skew")
	endpoints := []string{mockapi.PostResponses, mockapi.PostResponses, mockapi.PostMaveChat, mockapi.PostFocusGroups, mockapi.PostVideoAnalyses}
	loads := rapid.IntRange(1, 2).Draw(t, "loads")
	for range loads {
		l := Load{
			Endpoint: rapid.SampledFrom(endpoints).Draw(t, "endpoint"),
			Callers:  rapid.IntRange(1, 4).Draw(t, "callers"),
			Poll:     10 * time.Second,
		}
		s.jobs = s.jobs || l.Endpoint == mockapi.PostVideoAnalyses
		arrival := rapid.IntRange(0, 3).Draw(t, "arrival")
		if l.Endpoint != mockapi.PostResponses {
			arrival = min(arrival, 1)
		}
		switch arrival {
		case 0:
			l.Arrival = Saturated{}
		case 1:
			l.Arrival = OnOff{drawSeconds(t, 5, 90, "on"), drawSeconds(t, 1, 120, "off")}
		case 2:
			l.Arrival = Bursts{rapid.IntRange(1, s.API.Limit/2).Draw(t, "burst"), drawSeconds(t, 75, 150, "every")}
		case 3: // half of what the limit allows, in all
			l.Arrival = Poisson{float64(s.API.Limit) / 60 / 4 / float64(s.Fleet.Processes)}
		}
		s.Fleet.Loads = append(s.Fleet.Loads, l)
		s.happens("%d processes: %s by %d callers each, %T%+v", s.Fleet.Processes, l.Endpoint, l.Callers, l.Arrival, l.Arrival)
	}
}

func (s *story) drawEvent(t *rapid.T) {
	at := time.Duration(rapid.Int64Range(0, int64(s.Length)).Draw(t, "at"))
	add := func(e Event, deaf time.Duration, format string, args ...any) {
		s.Events = append(s.Events, e)
		s.deaf += deaf
		s.happens("at %v "+format, append([]any{at}, args...)...)
	}
	switch rapid.IntRange(0, 13).Draw(t, "event") {
	case 0, 1:
		process, again := rapid.IntRange(0, s.Fleet.Processes-1).Draw(t, "process"), drawMillis(t, 1, 60_000, "again")
		s.crashes, s.killed = true, append(s.killed, at)
		add(Crash(at, process, again), 45*time.Second, "process %d is killed, and starts again after %v", process, again)
	case 2, 3:
		length := drawMillis(t, 1, 90_000, "away")
		s.back = append(s.back, at+length)
		add(RedisAway(at, length), length+20*time.Second, "Redis is away for %v", length)
	case 4:
		at = max(at, time.Second) // who is forgotten and born again in one millisecond cannot be told apart
		s.flushed = append(s.flushed, at)
		add(RedisFlushed(at), 20*time.Second, "Redis forgets everything")
	case 5:
		if s.keep {
			return // an API that restarts knows nothing of the calls before
		}
		length := drawMillis(t, 1, 20_000, "restart")
		add(RestartAPI(at, length), length+45*time.Second, "the API restarts, which takes %v", length)
		s.crashes = true // jobs may have been started of which nobody knows
	case 6:
		n, pause := rapid.IntRange(1, 10).Draw(t, "requests"), drawSeconds(t, 1, 30, "retry after")
		add(Unavailable(at, n, pause), time.Duration(n)*(pause+time.Minute), "%d requests are answered 503, Retry-After %v", n, pause)
	case 7:
		pause := drawSeconds(t, 1, 60, "pause")
		s.alone = false
		add(Pause(at, pause), pause+90*time.Second, "429 out of the blue, Retry-After %v", pause)
	case 8:
		share := rapid.Float64Range(0.05, 0.5).Draw(t, "share")
		length := drawSeconds(t, 10, 300, "stranger")
		s.alone = false
		s.slowest = min(s.slowest, 1-share-0.2)
		add(StrangerFor(at, length, share), 2*time.Minute, "a stranger uses %.2f of the key for %v", share, length)
	case 9:
		share, n := rapid.Float64Range(0.05, 0.5).Draw(t, "share"), rapid.IntRange(1, 4).Draw(t, "times")
		s.alone = false
		add(StrangerBursts(share, n), time.Duration(n)*2*time.Minute, "at random a stranger takes %.2f of the limit, %d times", share, n)
	case 10:
		limit := rapid.IntRange(s.API.Limit/2, s.API.Limit).Draw(t, "new limit")
		s.alone, s.lowered = false, append(s.lowered, at)
		s.slowest = min(s.slowest, 0.5)
		add(SetLimit(at, limit), 2*time.Minute, "the limit becomes %d", limit)
	case 11, 12: // for less than its leases last
		process, length := rapid.IntRange(0, s.Fleet.Processes-1).Draw(t, "process"), drawMillis(t, 1, 25_000, "cut")
		add(CutOff(at, length, process), length+20*time.Second, "process %d is cut off from Redis for %v", process, length)
	case 13: // slots that have been given back since are taken until their leases end
		by := drawMillis(t, 1, 60_000, "by")
		at = max(at, by+time.Second)
		s.flushed = append(s.flushed, at)
		add(RedisGoesBack(at, by), 60*time.Second, "Redis goes back by %v", by)
	}
}

// forgetful tells that Redis loses its memory soon after a worker's death, or so soon
// before that the worker could not tell it again. What that worker had sent, and the calls
// and jobs that go on, are then known to nobody: docs/operations.md, "Faults".
func (s story) forgetful() bool {
	const telling = 30 * time.Second
	traces := max(s.API.Window, s.longest) + time.Second
	if s.jobs {
		traces = max(traces, s.API.JobDuration.Max+time.Second)
	}
	for _, killed := range s.killed {
		for _, flushed := range s.flushed {
			if flushed > killed-telling && flushed < killed+traces {
				return true
			}
		}
	}
	return false
}

// secretive tells that the limit may have fallen while those who saw it could not tell the
// others: docs/operations.md, "Faults".
func (s story) secretive() bool {
	const resumption = 10 * time.Second
	for _, lowered := range s.lowered {
		for _, back := range slices.Concat(s.back, s.flushed) {
			if lowered < back+resumption {
				return true
			}
		}
	}
	return false
}

// patience is how long a call may wait at most: twice what it takes to serve all
// callers once, three windows, and whatever else kept the fleet from working.
func (s story) patience() time.Duration {
	callers := 0
	wait := time.Duration(0)
	for _, l := range s.Fleet.Loads {
		n := l.Callers * s.Fleet.Processes
		if b, ok := l.Arrival.(Bursts); ok {
			n = max(n, b.Size)
		}
		callers += n
		slot := s.longest
		switch l.Endpoint {
		case mockapi.PostResponses:
			continue
		case mockapi.PostVideoAnalyses:
			slot = s.API.JobDuration.Max + l.Poll
		}
		slots := Scenario{Fleet: Fleet{Loads: []Load{l}}}.capacity()
		wait += 2 * slot * time.Duration(n/slots+1)
	}
	perRequest := float64(s.API.Window) / (float64(s.API.Limit) * max(0.2, s.slowest))
	wait += 2*time.Duration(float64(callers)*perRequest) + 3*s.API.Window + s.deaf
	if s.jobs && (s.crashes || s.deaf > 0) {
		wait += 20 * time.Minute // a lost job's slot comes back with its TTL
	}
	return wait
}

// broken lists the promises that a run did not keep.
func (s story) broken(r Result) (broken []string) {
	miss := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	// In a busy window a poll may come later than the minute for which slots are withheld,
	// and tell of a job whose slot has been given to another: docs/operations.md.
	var unpolled int64
	if len(s.flushed) > 0 {
		unpolled = r.Stats.SlotViolationsByEndpoint[mockapi.PostVideoAnalyses]
	}
	alone := s.alone && !s.forgetful()
	if alone && int64(r.Own429) > unpolled {
		miss("%d × 429, though nobody else uses the key", r.Own429)
	}
	if most := r.MostInWindow(s.API.Window); alone && most > s.API.Limit {
		miss("%d requests in a window, limit %d", most, s.API.Limit)
	}
	if !s.forgetful() && (r.Stats.LimitViolations > 0 && !s.secretive() || r.Stats.SlotViolations > unpolled) {
		miss("%d requests over the limit and %d over a cap by the fleet's own fault", r.Stats.LimitViolations, r.Stats.SlotViolations)
	}
	patience, longest := s.patience(), Call{}
	for _, c := range r.Calls {
		waited := c.Waited
		if c.Waited < 0 && c.Unfinished {
			waited = c.Ended - c.Begun
		}
		if waited > patience && waited > longest.Ended-longest.Begun {
			longest = c
		}
	}
	if longest.Ended > 0 {
		miss("a call waited longer than %v: %+v", patience, longest)
	}
	for _, l := range r.Leases {
		if l.Endpoint != mockapi.PostVideoAnalyses && !s.crashes {
			miss("the lease %s of %s was not given back", l.Name, l.Endpoint)
		}
	}
	if len(r.KeysLeft) > 0 {
		miss("Redis still holds %v", r.KeysLeft)
	}
	return broken
}

// TestAnyScenarioKeepsThePromises draws scenarios; -rapid.checks says how many, and
// -rapid.seed repeats a run. What it found is below in this package, by name.
func TestAnyScenarioKeepsThePromises(t *testing.T) {
	var played time.Duration
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		s := drawStory(rt)
		var r Result
		endless := time.AfterFunc(5*time.Minute, func() { fmt.Fprintf(os.Stderr, "Still playing:\n%s\n", s) })
		synctest.Test(t, func(t *testing.T) { r = Run(t, s.Scenario, Fleetlimit) })
		endless.Stop()
		played += s.Length
		n++
		if broken := s.broken(r); len(broken) > 0 {
			rt.Fatalf("%s\n\n%s", strings.Join(broken, "\n"), s)
		}
	})
	t.Logf("%.1f virtual hours of %d scenarios", played.Hours(), n)
}
