package main

import (
	"slices"
	"time"
)

// A tally counts what the workers report. Its clock is the parent's: a report
// takes far less than a millisecond. Not safe for concurrent use.
type tally struct {
	begun   time.Time
	ended   time.Time // of the last item
	workers []*workerTally

	firstSent, lastSent time.Time
	lastMinute          []time.Time // of requests that were sent, the oldest first

	succeeded, failed int
	failures          map[string]int
}

type workerTally struct {
	name      string
	succeeded int
	failed    int
	sent      int // all requests: polls and retries as well
	polls     int
	rejected  int // 429
	refused   int // neither accepted nor a 429: unauthorized, or no response at all
	waiting   int // items that it holds and has sent nothing for yet
	waits     []time.Duration
	fate      string // empty: it ended as it should
}

func newTally(names []string) *tally {
	t := &tally{begun: time.Now(), failures: make(map[string]int)}
	for _, name := range names {
		t.workers = append(t.workers, &workerTally{name: name})
	}
	return t
}

func (t *tally) of(name string) *workerTally {
	i := slices.IndexFunc(t.workers, func(w *workerTally) bool { return w.name == name })
	return t.workers[i]
}

func (t *tally) handed(worker string) { t.of(worker).waiting++ }

func (t *tally) sent(worker string, r report) {
	now := time.Now()
	w := t.of(worker)
	w.sent++
	if r.Poll {
		w.polls++
	}
	if !r.Again {
		w.waiting--
		if !r.Poll {
			w.waits = append(w.waits, r.Waited)
		}
	}
	if t.firstSent.IsZero() {
		t.firstSent = now
	}
	t.lastSent = now
	t.lastMinute = append(t.lastMinute, now)
}

func (t *tally) answered(worker string, status int) {
	switch w := t.of(worker); status {
	case 429:
		w.rejected++
	case 0, 401:
		w.refused++
	}
}

// done counts an item that has ended; admitted is false if nothing was sent for it.
func (t *tally) done(worker, failure string, admitted bool) {
	t.ended = time.Now()
	if !admitted {
		t.of(worker).waiting--
	}
	if failure == "" {
		t.succeeded++
		t.of(worker).succeeded++
		return
	}
	t.failed++
	t.of(worker).failed++
	t.failures[failure]++
}

// buried forgets what a dead worker was waiting for, and notes its fate.
func (t *tally) buried(worker, fate string) {
	w := t.of(worker)
	w.waiting, w.fate = 0, fate
}

func (t *tally) waiting() (n int) {
	for _, w := range t.workers {
		n += w.waiting
	}
	return n
}

func (t *tally) rejected() (n int) {
	for _, w := range t.workers {
		n += w.rejected
	}
	return n
}

// perMinute is the number of requests sent in the last minute.
func (t *tally) perMinute() int {
	edge := time.Now().Add(-time.Minute)
	i, _ := slices.BinarySearchFunc(t.lastMinute, edge, time.Time.Compare)
	t.lastMinute = slices.Delete(t.lastMinute, 0, i)
	return len(t.lastMinute)
}

// utilization is the share of the budget that was used while there was work: the
// requests that the API accepted, polls and retries included, divided by what
// the limit allows in the time between the first request and the last, but at
// least in one window. It is at most 1: a fleet that starts with an unused window
// may be a little ahead of the tier's mean rate.
func (t *tally) utilization(limit int, window time.Duration) float64 {
	accepted := 0
	for _, w := range t.workers {
		accepted += w.sent - w.rejected - w.refused
	}
	busy := max(t.lastSent.Sub(t.firstSent), window)
	return min(1, float64(accepted)/(float64(limit)*busy.Seconds()/window.Seconds()))
}

// waits are the waits of all requests for their admission, polls apart.
func (t *tally) waits() []time.Duration {
	var all []time.Duration
	for _, w := range t.workers {
		all = append(all, w.waits...)
	}
	return all
}

// percentile is the smallest value that at least p percent of the values do not
// exceed (nearest rank); 0 of none.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(float64(len(sorted))*p/100 + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}
