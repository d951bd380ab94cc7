package main

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPercentileIsOfTheNearestRank(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i) // in no order
	}
	tests := []struct {
		values []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 99, 7},
		{[]time.Duration{1, 2}, 50, 1},
		{[]time.Duration{1, 2}, 99, 2},
		{[]time.Duration{3, 1, 2}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
	}
	for _, test := range tests {
		before := slices.Clone(test.values)
		if got := percentile(test.values, test.p); got != test.want {
			t.Errorf("percentile %v of %d values is %v, want %v", test.p, len(test.values), got, test.want)
		}
		if !slices.Equal(before, test.values) {
			t.Error("the values were sorted in place")
		}
	}
}

func TestUtilizationIsTheShareOfTheBudgetWhileThereWasWork(t *testing.T) {
	tests := []struct {
		name     string
		requests int           // spread evenly
		over     time.Duration // between the first and the last
		rejected int           // of them
		want     float64
	}{
		{"a full minute", 60, time.Minute, 0, 1},
		{"half of two minutes", 60, 2 * time.Minute, 0, 0.5},
		{"a burst in an instant counts against its window", 30, 0, 0, 0.5},
		{"what was rejected was not used", 60, time.Minute, 30, 0.5},
		{"a burst at the start cannot pass the whole", 90, 70 * time.Second, 0, 1},
		{"nothing", 0, 0, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tally := newTally([]string{"w"})
				for i := range test.requests {
					if i > 0 {
						time.Sleep(test.over / time.Duration(test.requests-1))
					}
					tally.handed("w")
					tally.sent("w", report{})
					status := 200
					if i < test.rejected {
						status = 429
					}
					tally.answered("w", status)
				}
				if got := tally.utilization(60, time.Minute); math.Abs(got-test.want) > 1e-6 {
					t.Errorf("utilization %v, want %v", got, test.want)
				}
			})
		})
	}
}

func TestRequestsPerMinuteAreThoseOfTheLastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tally := newTally([]string{"w"})
		for range 90 {
			tally.sent("w", report{})
			time.Sleep(time.Second)
		}
		if n := tally.perMinute(); n != 60 {
			t.Errorf("%d requests in the last minute, want 60", n)
		}
		time.Sleep(time.Hour)
		if n := tally.perMinute(); n != 0 {
			t.Errorf("%d requests in the last minute, want none", n)
		}
	})
}

func TestWaitingEndsWithTheFirstRequestTheItemOrTheWorker(t *testing.T) {
	tally := newTally([]string{"w1", "w2"})
	for range 3 {
		tally.handed("w1")
	}
	tally.handed("w2")
	steps := []struct {
		what string
		do   func()
		want int
	}{
		{"a request goes out", func() { tally.sent("w1", report{}) }, 3},
		{"it is repeated", func() { tally.sent("w1", report{Again: true}) }, 3},
		{"it succeeds", func() { tally.done("w1", "", true) }, 3},
		{"another fails before it was sent", func() { tally.done("w1", "no luck", false) }, 2},
		{"the worker dies", func() { tally.buried("w1", "killed") }, 1},
	}
	for _, step := range steps {
		if step.do(); tally.waiting() != step.want {
			t.Errorf("%s: %d are waiting, want %d", step.what, tally.waiting(), step.want)
		}
	}
	if tally.succeeded != 1 || tally.failed != 1 || tally.failures["no luck"] != 1 {
		t.Errorf("%+v", tally)
	}
}

func TestWaitsAreThoseOfRequestsNotOfPolls(t *testing.T) {
	tally := newTally([]string{"w"})
	tally.sent("w", report{Waited: time.Second})
	tally.sent("w", report{Waited: time.Minute, Poll: true, Again: true})
	tally.sent("w", report{Waited: time.Minute, Poll: true}) // of a job taken over
	if w := tally.waits(); len(w) != 1 || w[0] != time.Second {
		t.Errorf("waits %v", w)
	}
}
