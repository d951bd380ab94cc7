package coordinator

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// tryFor asks again and again, with short deadlines, and returns how often it got a permit.
func tryFor(c *Coordinator, length time.Duration) (granted int) {
	for start := time.Now(); time.Since(start) < length; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := within(2 * time.Second)
		if p, err := c.Acquire(ctx, Request{}); err == nil {
			p.Sent()
			granted++
		}
		cancel()
		if _, err := c.TryAcquire(context.Background(), Request{}); err == nil {
			granted++
		}
	}
	return granted
}

// reconnect ends an outage and, when Redis decides again, the worker.
func reconnect(t *testing.T, c *Coordinator, l *link) {
	t.Helper()
	l.setCut(false)
	time.Sleep(10 * time.Second)
	closeAll(t, c)
}

// A pause that is known when Redis goes away is obeyed until its end, though nobody waits for
// it then: whoever asked had a deadline, or did not wait.
func TestAPauseHoldsOnWhenRedisGoesAway(t *testing.T) {
	for what, begin := range map[string]func(*rig, *Permit) error{
		"the API's": func(_ *rig, p *Permit) error {
			f := NoFeedback
			f.Status, f.RetryAfter = 429, time.Minute
			p.Report(f)
			return nil
		},
		"an operator's": func(r *rig, _ *Permit) error {
			_, err := r.operator().Pause(context.Background(), "acme", time.Minute, "being repaired")
			return err
		},
		"a drain": func(r *rig, _ *Permit) error {
			_, err := r.operator().Drain(context.Background(), "acme", "a", time.Minute, "being replaced")
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				c, l := r.linked("a", Policy{Limit: 600, Headroom: 1}, OwnShare)
				p := mustAcquire(t, c, "")
				time.Sleep(2 * time.Minute)
				if err := begin(r, p); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				var wait *WaitError
				if _, err := c.TryAcquire(context.Background(), Request{}); !errors.As(err, &wait) {
					t.Fatalf("error %v, want a pause", err)
				}
				time.Sleep(12 * time.Second) // a heartbeat looks, and asks for nothing
				l.setCut(true)
				if n := tryFor(c, 44*time.Second); n > 0 {
					t.Errorf("%d requests in the pause", n)
				}
				time.Sleep(5 * time.Second)
				if n := tryFor(c, 10*time.Second); n < 90 {
					t.Errorf("%d requests in ten seconds after it, want the share", n)
				}
				reconnect(t, c, l)
			})
		})
	}
}

// What ended a pause while Redis was there holds also in an outage.
func TestAPauseThatWasEndedDoesNotHoldInAnOutage(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, l := r.linked("a", Policy{Limit: 600, Headroom: 1}, OwnShare)
		mustAcquire(t, c, "")
		time.Sleep(2 * time.Minute)
		o := r.operator()
		if _, err := o.Pause(context.Background(), "acme", time.Hour, "being repaired"); err != nil {
			t.Fatal(err)
		}
		waits := acquireSoon(c, "")
		time.Sleep(time.Second)
		l.setCut(true)
		time.Sleep(20 * time.Second) // it is alone, and obeys
		l.setCut(false)
		time.Sleep(10 * time.Second)
		if _, err := o.Resume(context.Background(), "acme", false); err != nil {
			t.Fatal(err)
		}
		<-waits
		l.setCut(true)
		if n := tryFor(c, 10*time.Second); n < 90 {
			t.Errorf("%d requests in ten seconds, want the share", n)
		}
		reconnect(t, c, l)
	})
}

// So it is for who does not wait, however long the pause was meant to be.
func TestAPauseThatWasEndedHoldsUpNobodyWhoDidNotWait(t *testing.T) {
	for what, end := range map[string]func(*Operator) error{
		"pause": func(o *Operator) error { _, err := o.Resume(context.Background(), "acme", false); return err },
		"drain": func(o *Operator) error { _, err := o.Undrain(context.Background(), "acme", "a"); return err },
	} {
		t.Run(what, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				c, l := r.linked("a", Policy{Limit: 600, Headroom: 1}, OwnShare)
				mustAcquire(t, c, "")
				time.Sleep(2*time.Minute + time.Second)
				o := r.operator()
				var err error
				if what == "pause" {
					_, err = o.Pause(context.Background(), "acme", 23*time.Hour, "being repaired")
				} else {
					_, err = o.Drain(context.Background(), "acme", "a", 23*time.Hour, "being replaced")
				}
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(11 * time.Second)
				if _, err := c.TryAcquire(context.Background(), Request{}); err == nil {
					t.Fatal("there is no pause")
				}
				if err := end(o); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
				l.setCut(true)
				if n := tryFor(c, 20*time.Second); n < 150 {
					t.Errorf("%d requests in twenty seconds of outage, want the share", n)
				}
				reconnect(t, c, l)
			})
		})
	}
}

// What the API said when Redis had just gone away, and nobody had noticed, is obeyed by who
// heard it.
func TestAPushbackThatRedisNeverHeardIsObeyed(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, l := r.linked("a", Policy{Limit: 600, Headroom: 1}, OwnShare)
		mustAcquire(t, c, "")
		time.Sleep(2 * time.Minute)
		p := mustAcquire(t, c, "")
		l.setCut(true)
		f := NoFeedback
		f.Status, f.RetryAfter = 429, time.Minute
		p.Report(f)
		if got := acquireMany([]*Coordinator{c}, "", 1000, 59*time.Second); len(got) > 0 {
			t.Errorf("%d requests in the pause of the API", len(got))
		}
		reconnect(t, c, l)
	})
}

// An endpoint's pause concerns its callers alone, also in an outage, and whether or not
// anybody has asked for a slot since it was reported.
func TestAnEndpointsPauseHoldsOnWhenRedisGoesAway(t *testing.T) {
	for _, asked := range []bool{true, false} {
		t.Run(fmt.Sprint("asked=", asked), func(t *testing.T) { endpointsPause(t, asked) })
	}
}

func endpointsPause(t *testing.T, asked bool) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, l := r.linked("a", Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 2}}}, OwnShare)
		p := mustAcquire(t, c, chat)
		time.Sleep(2 * time.Minute)
		f := NoFeedback
		f.Status, f.Limit, f.Remaining, f.RetryAfter = 429, 600, 500, 4*time.Minute
		p.Report(f)
		p.Release()
		held := mustAcquire(t, c, "")
		time.Sleep(time.Second)
		ask := func() error {
			ctx, cancel := within(time.Second)
			defer cancel()
			p, err := c.Acquire(ctx, Request{Endpoint: chat})
			if err == nil {
				p.Release()
			}
			return err
		}
		if asked {
			if err := ask(); err == nil {
				t.Fatal("the endpoint does not pause")
			}
		}
		l.setCut(true)
		time.Sleep(90 * time.Second) // by then the worker could use its part of the slots
		for range 20 {
			if err := ask(); err == nil {
				t.Error("a call in the endpoint's pause")
			}
			time.Sleep(time.Second)
		}
		if n := tryFor(c, 10*time.Second); n < 60 {
			t.Errorf("%d requests of others in ten seconds, want the share", n)
		}
		held.Release()
		reconnect(t, c, l)
	})
}
