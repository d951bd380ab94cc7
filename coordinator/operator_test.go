package coordinator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

var steerable = Policy{
	Limit: 600, Headroom: 1, Burst: 10, LeaseTTL: 30 * time.Second,
	Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}},
}

func (r *rig) operator() *Operator {
	r.t.Helper()
	o, err := NewOperator(r.rdb, "ada")
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

// acquireSoon is a caller that waits; it tells when it was admitted, or lost its patience.
func acquireSoon(c *Coordinator, endpoint string) <-chan time.Time {
	admitted := make(chan time.Time, 1)
	go func() {
		ctx, cancel := within(patience)
		defer cancel()
		if p, err := c.Acquire(ctx, Request{Endpoint: endpoint}); err == nil {
			p.Release()
		}
		admitted <- time.Now()
	}()
	return admitted
}

func TestAnOperatorsPauseHoldsTheFleetAtOnceAndEndsByItself(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", steerable), r.worker("b", steerable)
		defer a.Close()
		defer b.Close()
		mustAcquire(t, a, "").Release()
		o, ctx := r.operator(), context.Background()
		done, err := o.Pause(ctx, "acme", 20*time.Minute, "the API is being repaired")
		if err != nil || done.Paused != 20*time.Minute || done.Made != 20*time.Minute || done.Asked != 0 {
			t.Fatalf("Pause: %+v, %v", done, err)
		}
		begun := time.Now()
		var wait *WaitError
		if _, err := b.TryAcquire(ctx, Request{}); !errors.As(err, &wait) || wait.Gate != GateBackoff {
			t.Fatalf("another worker during the pause: %v", err)
		}
		s, err := o.Account(ctx, "acme")
		if err != nil || s.Hold == nil || s.Hold.By != "ada" || s.Hold.Reason != "the API is being repaired" || s.Backoff != nil {
			t.Fatalf("the state tells of the pause: %+v, %v", s, err)
		}
		if ttl := r.mini.TTL("fleetlimit:{acme}:backoff"); ttl != 20*time.Minute {
			t.Errorf("the pause's key lives for %v", ttl)
		}
		if at := <-acquireSoon(b, ""); at.Sub(begun) < 20*time.Minute || at.Sub(begun) > 20*time.Minute+time.Second {
			t.Errorf("admitted %v after the pause began", at.Sub(begun))
		}
	})
}

func TestResumeWakesThoseWhoSleep(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", steerable), r.worker("b", steerable)
		defer a.Close()
		defer b.Close()
		mustAcquire(t, a, "").Release()
		mustAcquire(t, b, "").Release()
		o, ctx := r.operator(), context.Background()
		if _, err := o.Pause(ctx, "acme", time.Hour, "lunch"); err != nil {
			t.Fatal(err)
		}
		admitted := []<-chan time.Time{acquireSoon(a, ""), acquireSoon(b, ""), acquireSoon(b, "POST /chat")}
		time.Sleep(10 * time.Minute)
		done, err := o.Resume(ctx, "acme", false)
		if err != nil || done.Cut != 50*time.Minute || done.Paused != 0 {
			t.Fatalf("Resume: %+v, %v", done, err)
		}
		resumed := time.Now()
		for _, at := range admitted {
			if d := (<-at).Sub(resumed); d > time.Second {
				t.Errorf("a caller was admitted %v after the fleet was resumed", d)
			}
		}
	})
}

// The API's pause and the operator's stand side by side: neither cuts the other short.
func TestNeitherPauseCutsTheOtherShort(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", steerable)
		defer c.Close()
		o, ctx := r.operator(), context.Background()
		told := mustAcquire(t, c, "")
		if _, err := o.Pause(ctx, "acme", 10*time.Minute, "lunch"); err != nil {
			t.Fatal(err)
		}
		f := NoFeedback
		f.Status, f.RetryAfter = 429, 20*time.Second
		told.Report(f)
		time.Sleep(time.Second)
		s, err := o.Account(ctx, "acme")
		if err != nil || s.Hold == nil || s.Hold.Left < 9*time.Minute || s.Backoff == nil || s.Rejected != 1 {
			t.Fatalf("after a 429 during the operator's pause: %+v, %v", s, err)
		}
		done, err := o.Resume(ctx, "acme", false)
		if err != nil || done.Paused < 18*time.Second || done.Asked != done.Paused {
			t.Fatalf("Resume leaves what the API asked for: %+v, %v", done, err)
		}
		if _, err := o.Pause(ctx, "acme", time.Second, "a moment"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if s, _ = o.Account(ctx, "acme"); s.Backoff == nil || s.Hold != nil {
			t.Fatalf("a short pause by an operator ended the API's: %+v", s)
		}
		if done, err = o.Resume(ctx, "acme", true); err != nil || done.Paused != 0 {
			t.Fatalf("Resume of everything: %+v, %v", done, err)
		}
		if _, err := c.TryAcquire(ctx, Request{}); err != nil {
			t.Errorf("after everything was resumed: %v", err)
		}
	})
}

func TestADrainedWorkerGetsNothingAndTheOthersGoOn(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", steerable), r.worker("b", steerable)
		defer a.Close()
		defer b.Close()
		o, ctx := r.operator(), context.Background()
		held := mustAcquire(t, a, "POST /chat")
		waiting := acquireSoon(a, "POST /chat") // in the queue, ahead of b
		time.Sleep(5 * time.Second)
		other := acquireSoon(b, "POST /chat")
		time.Sleep(5 * time.Second)
		if done, err := o.Drain(ctx, "acme", "a", time.Hour, "its host is to be replaced"); err != nil || done.Made != time.Hour {
			t.Fatalf("Drain: %+v, %v", done, err)
		}
		time.Sleep(time.Minute)
		select {
		case <-held.Lost():
			t.Fatal("the drained worker lost what it held")
		default:
		}
		s, err := o.Account(ctx, "acme")
		if err != nil || len(s.Drained) != 1 || s.Drained[0].Worker != "a" || s.Drained[0].By != "ada" || s.Endpoints[0].InUse != 1 {
			t.Fatalf("the state during the drain: %+v, %v", s, err)
		}
		released := time.Now()
		held.Release()
		if d := (<-other).Sub(released); d > time.Second {
			t.Errorf("another worker got the slot of the drained one after %v", d)
		}
		var wait *WaitError
		if _, err := a.TryAcquire(ctx, Request{}); !errors.As(err, &wait) || wait.Gate != GateDrain {
			t.Errorf("the drained worker: %v", err)
		}
		soon, cancel := within(10 * time.Second)
		defer cancel()
		asked := time.Now()
		if _, err := a.Acquire(soon, Request{}); !errors.As(err, &wait) || wait.Gate != GateDrain || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller whose deadline will pass: %v", err)
		}
		if d := time.Since(asked); d > time.Second {
			t.Errorf("it was told after %v", d)
		}
		select {
		case <-waiting:
			t.Fatal("a caller of the drained worker was admitted")
		default:
		}
		if done, err := o.Undrain(ctx, "acme", "a"); err != nil || done.Cut == 0 {
			t.Fatalf("Undrain: %+v, %v", done, err)
		}
		undrained := time.Now()
		if d := (<-waiting).Sub(undrained); d > time.Second {
			t.Errorf("admitted %v after the drain was ended", d)
		}
	})
}

func TestADrainEndsByItself(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", steerable)
		defer c.Close()
		mustAcquire(t, c, "").Release()
		if _, err := r.operator().Drain(context.Background(), "acme", "a", 30*time.Minute, "a test"); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if d := (<-acquireSoon(c, "")).Sub(begun); d < 30*time.Minute || d > 30*time.Minute+time.Second {
			t.Errorf("admitted %v after the drain began", d)
		}
	})
}

func TestAfterAResetTheFleetStillKnowsWhatItSent(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := steerable
		p.Limit, p.Burst = 10, 10
		c := r.worker("a", p)
		defer c.Close()
		for range 10 {
			mustAcquire(t, c, "").Release()
		}
		begun := time.Now()
		time.Sleep(time.Second)
		o, ctx := r.operator(), context.Background()
		deleted, err := o.Reset(ctx, "acme")
		if err != nil || deleted < 2 {
			t.Fatalf("Reset: %d keys, %v", deleted, err)
		}
		if names := r.mini.Keys(); len(names) > 0 {
			t.Fatalf("left over: %q", names)
		}
		if d := (<-acquireSoon(c, "")).Sub(begun); d < time.Minute {
			t.Errorf("the eleventh request of a minute was admitted after %v", d)
		}
		if _, err := o.Account(ctx, "other"); !errors.Is(err, ErrNoAccount) {
			t.Errorf("an account that is not there: %v", err)
		}
	})
}

// Whichever key holds something else, a reset ends it.
func TestAResetDeletesKeysOfAnotherType(t *testing.T) {
	names := append(keysOf("acme").budget(), keysOf("acme").endpoint("POST /chat")...)
	names = append(names, keysOf("acme").workers(), keysOf("acme").policies(), keysOf("acme").timeline())
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				c := r.worker("a", Policy{Limit: 10, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 2}}})
				defer c.Close()
				mustAcquire(t, c, "POST /chat").Release()
				time.Sleep(65 * time.Second) // between two heartbeats
				r.mini.Del(name)
				r.mini.Set(name, "something else")
				if deleted, err := r.operator().Reset(t.Context(), "acme"); err != nil || deleted < 1 {
					t.Fatalf("Reset: %d keys, %v", deleted, err)
				}
				if left := r.mini.Keys(); len(left) > 0 {
					t.Errorf("left over: %q", left)
				}
				time.Sleep(time.Minute)
				mustAcquire(t, c, "POST /chat").Release()
			})
		})
	}
}

func TestInspectorFindsAccountsAndJobs(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Endpoints: []Endpoint{{Pattern: "POST /video", Slots: 3, JobTTL: time.Minute}}}
		c := r.worker("a", p)
		defer c.Close()
		mustAcquire(t, c, "POST /video").BindJob("va_1")
		time.Sleep(time.Second)
		r.mini.Set("fleetlimit:{*}:account", "no name of an account")
		r.mini.Set("something else", "")
		o, ctx := r.operator(), context.Background()
		names, err := o.Accounts(ctx)
		if err != nil || !slices.Equal(names, []string{"acme"}) {
			t.Errorf("accounts %q, %v", names, err)
		}
		jobs, err := o.Jobs(ctx, "acme")
		if err != nil || len(jobs) != 1 || jobs[0].ID != "va_1" || jobs[0].Endpoint != "POST /video" || jobs[0].Worker != "a" {
			t.Errorf("jobs %+v, %v", jobs, err)
		}
	})
}

func TestOperatorRefusesWhatCannotBe(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		o, ctx := r.operator(), context.Background()
		for _, call := range []struct {
			field string
			err   func() error
		}{
			{"operator", func() error { _, err := NewOperator(r.rdb, "a\x1b[31m"); return err }},
			{"duration", func() error { _, err := o.Pause(ctx, "acme", 25*time.Hour, "x"); return err }},
			{"duration", func() error { _, err := o.Pause(ctx, "acme", 0, "x"); return err }},
			{"reason", func() error { _, err := o.Pause(ctx, "acme", time.Minute, "a\nb"); return err }},
			{"reason", func() error { _, err := o.Pause(ctx, "acme", time.Minute, strings.Repeat("x", 201)); return err }},
			{"account", func() error { _, err := o.Resume(ctx, "a}b", false); return err }},
			{"worker", func() error { _, err := o.Drain(ctx, "acme", "a b", time.Minute, "x"); return err }},
			{"account", func() error { _, err := o.Reset(ctx, "*"); return err }},
		} {
			var bad *ConfigError
			if err := call.err(); !errors.As(err, &bad) || bad.Field != call.field {
				t.Errorf("want an error about %s, got %v", call.field, err)
			}
		}
	})
}

func TestHeartbeatsWriteTheTimelineDown(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", steerable), r.worker("b", steerable)
		defer a.Close()
		defer b.Close()
		mustAcquire(t, a, "")
		mustAcquire(t, b, "")
		time.Sleep(6 * time.Minute)
		told := mustAcquire(t, a, "")
		f := NoFeedback
		f.Status, f.RetryAfter = 429, time.Minute
		told.Report(f)
		time.Sleep(30 * time.Second)
		acquireSoon(b, "")
		time.Sleep(10 * time.Minute)
		samples, err := r.operator().Timeline(context.Background(), "acme")
		if err != nil || len(samples) < 50 || len(samples) > 120 {
			t.Fatalf("%d samples, %v", len(samples), err)
		}
		first, last := samples[0], samples[len(samples)-1]
		if first.Ago < 9*time.Minute || last.Ago > 11*time.Second {
			t.Errorf("the timeline goes from %v to %v ago", first.Ago, last.Ago)
		}
		// The first heartbeat may have come before the first two grants.
		if granted := last.Granted - first.Granted; granted < 2 || granted > 4 || last.Rejected != 1 || last.Paused || !slices.ContainsFunc(samples, func(s Sample) bool { return s.Paused && s.Waiting == 1 }) {
			t.Errorf("from %+v to %+v", first, last)
		}
	})
}
