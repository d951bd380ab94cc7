package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A diary writes down what a coordinator tells, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// take returns what was written since, once everything has been told.
func (d *diary) take() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := d.lines
	d.lines = nil
	return lines
}

func (d *diary) events() Events {
	return Events{
		Granted: func(e Grant) {
			d.add("granted %q gate %q after %v, alone %v", e.Endpoint, e.Gate, e.Waited.Round(time.Second), e.Alone)
		},
		Refused: func(e Refusal) {
			d.add("refused %q gate %q: %v", e.Endpoint, e.Gate, errors.Is(e.Err, context.DeadlineExceeded))
		},
		Reported: func(e Report) {
			d.add("reported %q %d, %d of %d left", e.Endpoint, e.Feedback.Status, e.Feedback.Remaining, e.Feedback.Limit)
		},
		Paused:     func(e Pause) { d.add("paused %q for %v", e.Endpoint, e.Left.Round(time.Second)) },
		Resumed:    func(e Resumption) { d.add("resumed %q", e.Endpoint) },
		LeaseLost:  func(e LostLease) { d.add("lost %q held %v", e.Endpoint, e.Held.Round(time.Second)) },
		Degraded:   func(e Degradation) { d.add("degraded to %v with %d workers", e.Behaviour, e.Workers) },
		Recovered:  func(e Recovery) { d.add("recovered, spent %d", e.Spent) },
		MemoryLost: func(MemoryLoss) { d.add("memory lost") },
		ForeignUse: func(e Foreign) { d.add("foreign %d", e.Requests) },
	}
}

func (r *rig) observed(name string, p Policy, d *diary) *Coordinator {
	r.t.Helper()
	c, err := New(r.rdb, p, Options{Account: "acme", Worker: name, Logger: slog.New(slog.DiscardHandler), Events: d.events()})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func expect(t *testing.T, d *diary, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, d.take()); diff != "" {
		t.Errorf("what was told (-want +got):\n%s", diff)
	}
}

func TestEventsTellOfGrantsByGate(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		d := new(diary)
		c := r.observed("w1", Policy{Limit: 60, Headroom: 1, Burst: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}, d)
		defer c.Close()
		mustAcquire(t, c, "")
		mustAcquire(t, c, "")
		expect(t, d, `granted "" gate "" after 0s, alone false`, `granted "" gate "pace" after 1s, alone false`)
		time.Sleep(time.Second)
		held := mustAcquire(t, c, "POST /chat")
		ctx, cancel := within(2 * time.Second)
		defer cancel()
		if _, err := c.Acquire(ctx, Request{Endpoint: "POST /chat"}); err == nil {
			t.Fatal("a second slot was granted")
		}
		expect(t, d, `granted "POST /chat" gate "" after 0s, alone false`, `refused "POST /chat" gate "slots": true`)
		held.Report(Feedback{Status: 200, Limit: 60, Remaining: 20, Reset: -1, RetryAfter: -1})
		held.Release()
		synctest.Wait()
		got := d.take()
		slices.Sort(got) // they come from two goroutines
		if want := []string{`foreign 37`, `reported "POST /chat" 200, 20 of 60 left`}; !slices.Equal(got, want) {
			t.Errorf("what was told of the response: %q, want %q", got, want)
		}
	})
}

func TestEventsTellOfPauseAndResumption(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		d, other := new(diary), new(diary)
		policy := Policy{Limit: 60, Headroom: 1}
		c, peer := r.observed("w1", policy, d), r.observed("w2", policy, other)
		defer c.Close()
		defer peer.Close()
		mustAcquire(t, peer, "").Release()
		p := mustAcquire(t, c, "")
		p.Report(Feedback{Status: 429, Limit: -1, Remaining: -1, Reset: -1, RetryAfter: 20 * time.Second})
		time.Sleep(11 * time.Second) // a heartbeat of the one who has nothing to do
		if got := other.take(); len(got) != 2 || !strings.HasPrefix(got[1], `paused "" for `) {
			t.Errorf("the other worker was told %q", got)
		}
		if got := d.take(); len(got) != 3 || got[2] != `paused "" for 21s` && got[2] != `paused "" for 20s` {
			t.Errorf("the worker that saw the 429 was told %q", got)
		}
		mustAcquire(t, c, "")
		got := d.take()
		slices.Sort(got) // they come from two goroutines
		if len(got) != 2 || !strings.HasPrefix(got[0], `granted "" gate "backoff" after `) || got[1] != `resumed ""` {
			t.Errorf("after the pause the worker was told %q", got)
		}
	})
}

func TestEventsTellOfAnEndpointsPause(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		d := new(diary)
		c := r.observed("w1", Policy{Limit: 60, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 2}}}, d)
		defer c.Close()
		p := mustAcquire(t, c, "POST /chat")
		p.Report(Feedback{Status: 429, Limit: 60, Remaining: 50, Reset: -1, RetryAfter: 5 * time.Second})
		p.Release()
		d.take()
		mustAcquire(t, c, "POST /chat").Release()
		got := d.take()
		if !slices.Contains(got, `resumed "POST /chat"`) || !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, `paused "POST /chat" for `) }) {
			t.Errorf("told %q, want the pause of the endpoint and its end", got)
		}
	})
}

func TestEventsTellOfLostLeasesAndLostMemory(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		d := new(diary)
		c := r.observed("w1", Policy{Limit: 60, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}, d)
		defer c.Close()
		mustAcquire(t, c, "POST /chat")
		d.take()
		r.mini.Del("fleetlimit:{acme}:slots:POST /chat")
		time.Sleep(11 * time.Second)
		expect(t, d, `lost "POST /chat" held 10s`)
		r.mini.FlushAll()
		time.Sleep(11 * time.Second)
		if got := d.take(); len(got) == 0 || got[0] != "memory lost" || slices.Contains(got[1:], "memory lost") {
			t.Errorf("told %q, want of the lost memory, once", got)
		}
	})
}

func TestEventsTellOfDegradedMode(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		d := new(diary)
		c := r.observed("w1", Policy{Limit: 60, Headroom: 1}, d)
		defer c.Close()
		mustAcquire(t, c, "")
		time.Sleep(time.Second)
		d.take()
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		mustAcquire(t, c, "")
		got := d.take()
		if len(got) != 2 || got[0] != "degraded to own share with 1 workers" || !strings.HasSuffix(got[1], "alone true") {
			t.Errorf("told %q, want degraded and then a grant of the own share", got)
		}
		r.mini.SetError("")
		time.Sleep(10 * time.Second)
		if got := d.take(); !slices.Contains(got, "recovered, spent 1") {
			t.Errorf("told %q, want of the recovery", got)
		}
	})
}

func TestListenersMayUseTheCoordinatorAndHang(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var c *Coordinator
		never := make(chan struct{})
		told := make(chan struct{}, 10)
		c, err := New(r.rdb, Policy{Limit: 60, Headroom: 1}, Options{Account: "acme", Logger: slog.New(slog.DiscardHandler), Events: Events{
			Granted:   func(Grant) { c.Load() },
			Exchanged: func(Exchange) { c.Load() },
			Degraded:  func(Degradation) { c.Load(); told <- struct{}{}; <-never },
		}})
		if err != nil {
			t.Fatal(err)
		}
		mustAcquire(t, c, "")
		time.Sleep(time.Second) // a heartbeat tells how many share
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		time.Sleep(30 * time.Second)
		mustAcquire(t, c, "")
		<-told
		r.mini.SetError("")
		time.Sleep(30 * time.Second)
		mustAcquire(t, c, "") // nobody waits for the listener
		c.Close()
		close(never)
	})
}

func TestExchangesTellBatchAndErrors(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var wanted, granted, failed int
		c, err := New(r.rdb, Policy{Limit: 60, Headroom: 1}, Options{Account: "acme", Logger: slog.New(slog.DiscardHandler), Events: Events{
			Exchanged: func(e Exchange) {
				mu.Lock()
				defer mu.Unlock()
				wanted, granted = wanted+e.Wanted, granted+e.Granted
				if e.Err != nil {
					failed++
				}
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 {
			mustAcquire(t, c, "")
		}
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		time.Sleep(11 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if wanted != 3 || granted != 3 || failed == 0 {
			t.Errorf("exchanges told of %d wanted, %d granted, %d failures; want 3, 3 and some", wanted, granted, failed)
		}
		r.mini.SetError("")
	})
}

func TestEventsCostNothingWithoutListeners(t *testing.T) {
	c := &Coordinator{account: "acme"}
	p := &Permit{c: c, lane: &lane{name: anyEndpoint}}
	asks := []ask{{n: 1}}
	a := answer{replies: []admission{{granted: 1}}}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		c.answered(Request{}, p, nil, now)
		c.answered(Request{}, nil, ErrClosed, now)
		c.exchanged(now, asks, 1, a, nil)
	}); n > 0 {
		t.Errorf("events that nobody hears allocate %v times", n)
	}
	c.events = Events{Granted: func(Grant) {}, Exchanged: func(Exchange) {}}
	if n := testing.AllocsPerRun(100, func() {
		c.answered(Request{}, p, nil, now)
		c.exchanged(now, asks, 1, a, nil)
	}); n > 0 {
		t.Errorf("events that somebody hears allocate %v times", n)
	}
}

func TestLogIsCalmInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := calm(slog.New(slog.NewTextHandler(&out, nil))).With("account", "acme")
		for range 100 {
			log.Warn("trouble")
			log.With("more", 1).WithGroup("g").Warn("other trouble")
			time.Sleep(100 * time.Millisecond)
		}
		log.Warn("trouble")
		if n := strings.Count(out.String(), "msg=trouble"); n != 2 {
			t.Errorf("%d lines for 101 messages in 10 s, want 2:\n%s", n, &out)
		}
		if n := strings.Count(out.String(), `msg="other trouble"`); n != 1 {
			t.Errorf("%d lines of another message, want 1:\n%s", n, &out)
		}
		if !strings.Contains(out.String(), "account=acme suppressed=99") {
			t.Errorf("nothing tells how many were suppressed:\n%s", &out)
		}
	})
}
