package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A notebook remembers what a worker was told.
type notebook struct {
	mu       sync.Mutex
	policies []PolicyDifference
	errs     []error
}

func (d *notebook) events() Events {
	return Events{
		PoliciesDiffer: func(p PolicyDifference) {
			d.mu.Lock()
			d.policies = append(d.policies, p)
			d.mu.Unlock()
		},
		Exchanged: func(e Exchange) {
			d.mu.Lock()
			if e.Err != nil {
				d.errs = append(d.errs, e.Err)
			}
			d.mu.Unlock()
		},
	}
}

func (r *rig) workerWith(name string, p Policy, e Events) *Coordinator {
	r.t.Helper()
	return r.begin(r.rdb, p, Options{Worker: name, Events: e})
}

// inAWindow counts how many permits a worker gets in one window.
func inAWindow(t *testing.T, c *Coordinator) (n int) {
	t.Helper()
	ctx, cancel := within(time.Minute)
	defer cancel()
	for {
		p, err := c.Acquire(ctx, Request{})
		if err != nil {
			return n
		}
		p.Release()
		n++
	}
}

// The everyday case: a fleet is rolled from 600 to 120, worker by worker, and back.
func TestAFleetThatIsRolledKeepsToTheStricterPolicy(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		loose := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 10}}}
		strict := Policy{Limit: 120, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 2}}}
		var of [2]notebook
		a := r.workerWith("a", loose, of[0].events())
		defer a.Close()
		mustAcquire(t, a, "").Release()
		time.Sleep(time.Second)
		b := r.workerWith("b", strict, of[1].events())
		mustAcquire(t, b, "").Release()
		time.Sleep(time.Second)
		if n := inAWindow(t, a); n > 120 || n < 115 {
			t.Errorf("a gets %d permits in a window, want the 120 of b's policy", n)
		}
		if n := inAWindow(t, a); n > 120 || n < 115 {
			t.Errorf("a gets %d permits in the next window, want the 120 of b's policy", n)
		}
		time.Sleep(time.Minute)
		first, second := mustAcquire(t, a, "POST /chat"), mustAcquire(t, a, "POST /chat")
		var full *WaitError
		if _, err := a.TryAcquire(context.Background(), Request{Endpoint: "POST /chat"}); !errors.As(err, &full) || full.Gate != GateSlots {
			t.Errorf("the third call of chat: %v, want gate slots: b's policy has two", err)
		}
		first.Release()
		second.Release()

		s, err := a.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"limit 120 (b), 600 (a)", "burst 60 (b), 300 (a)", "slots of POST /chat 2 (b), 10 (a)"}
		if got := s.PolicyDifferences(); !slices.Equal(got, want) {
			t.Errorf("the state tells of the differences %q, want %q", got, want)
		}
		if s.Limit != 120 || s.PolicyLimit != 120 || s.Endpoints[0].Slots != 2 {
			t.Errorf("limit %d, of the policy %d, slots %d; want 120, 120 and 2", s.Limit, s.PolicyLimit, s.Endpoints[0].Slots)
		}
		if notes := strings.Join(s.Explain().Notes, "\n"); !strings.Contains(notes, "limit 120 (b), 600 (a)") {
			t.Errorf("explain notes %q", notes)
		}

		b.Close()
		time.Sleep(35 * time.Second) // a few heartbeats
		if n := inAWindow(t, a); n < 500 {
			t.Errorf("a gets %d permits in a window when b has gone, want its 600", n)
		}
		for i, want := range [][]string{{"2 limit 600, not 120; burst 300, not 60; slots of POST /chat 10, not 2", "1 "}, {"2 "}} {
			var told []string
			for _, d := range of[i].policies {
				told = append(told, fmt.Sprint(d.Policies, " ", strings.Join(d.Fields, "; ")))
			}
			if !slices.Equal(told, want) {
				t.Errorf("worker %d was told %q, want %q", i, told, want)
			}
		}
	})
}

// A worker that dies with the strict policy does not say so.
func TestThePolicyOfADeadWorkerCountsUntilItCountsAsDead(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a := r.worker("a", Policy{Limit: 600, Headroom: 1})
		defer a.Close()
		mustAcquire(t, a, "").Release()
		b, cut := r.workerOnWire("b", Policy{Limit: 60, Headroom: 1})
		mustAcquire(t, b, "").Release()
		time.Sleep(time.Second)
		cut.Store(true) // it is never heard again
		time.Sleep(15 * time.Second)
		if s, err := a.State(context.Background()); err != nil || s.Limit != 60 {
			t.Errorf("limit %v (%v) while b may live, want 60", s.Limit, err)
		}
		time.Sleep(30 * time.Second)
		if s, err := a.State(context.Background()); err != nil || s.Limit != 600 || len(s.Policies) != 1 {
			t.Errorf("limit %v of %d policies (%v) when b is dead, want 600 of one", s.Limit, len(s.Policies), err)
		}
		cut.Store(false)
		b.Close()
	})
}

func TestAReplyThatIsNoPolicyIsRefused(t *testing.T) {
	for _, text := range []string{
		"", "600", "600 60000 250 0.9", "x 60000 250 0.9 300", "600 60000 250 2 300", "600 0 0 0.9 300", "-1 60000 250 0.9 300",
		"NaN 60000 250 0.9 300", "600 1e300 250 0.9 300", "600 60000 90000 0.9 300", strings.Repeat("9", 1<<20),
	} {
		if p, err := parsePolicy(text); err == nil || len(err.Error()) > 1000 {
			t.Errorf("%.60q: %+v and error %.100v, want a short error", text, p, err)
		}
	}
	p, err := parsePolicy("120 60000.000 250.000 0.9 60\n5 30000.000 POST /mave/chat\nx y\n0 1 GET /none")
	want := Policy{Limit: 120, Window: time.Minute, Jitter: 250 * time.Millisecond, Headroom: 0.9, Burst: 60, Endpoints: []Endpoint{{Pattern: "POST /mave/chat", Slots: 5}}}
	if err != nil || fmt.Sprint(p) != fmt.Sprint(want) {
		t.Errorf("%+v %v, want %+v", p, err, want)
	}
}

// One endpoint's key holds something else: its leases cannot be renewed, and their
// holders are told in time. All others are.
func TestAKeyOfAnotherTypeCostsNoOtherEndpointsLeases(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 2}, {Pattern: "POST /video", Slots: 2}}}
		var d notebook
		c := r.workerWith("a", p, d.events())
		defer c.Close()
		chat, video := mustAcquire(t, c, "POST /chat"), mustAcquire(t, c, "POST /video")
		key := "fleetlimit:{acme}:slots:POST /video"
		r.mini.Del(key)
		r.mini.Set(key, "something else")
		for _, other := range []string{"workers", "timeline", "policies", "queue:POST /video"} {
			r.mini.Del("fleetlimit:{acme}:" + other)
			r.mini.Set("fleetlimit:{acme}:"+other, "something else")
		}
		time.Sleep(2 * time.Minute)
		if err := chat.Valid(); err == nil || !errors.Is(err, ErrStale) {
			t.Errorf("the lease of chat: %v, want a permit that is old, and not lost", err)
		}
		if err := video.Valid(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("the lease of video: %v, want %v", err, ErrLeaseLost)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		var named *KeyError
		for _, name := range []string{key, "fleetlimit:{acme}:workers", "fleetlimit:{acme}:timeline", "fleetlimit:{acme}:policies"} {
			if !slices.ContainsFunc(d.errs, func(err error) bool { return errors.As(err, &named) && strings.Contains(err.Error(), name) }) {
				t.Errorf("no error names %s: %v", name, d.errs)
			}
		}
		r.mini.FlushAll()
	})
}
