package coordinator

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

const spoiledKey = "fleetlimit:{acme}:slots:POST /chat"

// An endpoint's key of another type is that endpoint's alone: its callers hear of it, what is
// to be told of its slots stays behind, and nobody else notices.
func TestASpoiledKeyConcernsItsEndpointAlone(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var log logbook
		policy := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 3}, {Pattern: "POST /video", Slots: 1}}}
		c := r.workerWith("a", policy, log.events())
		given, kept := mustAcquire(t, c, "POST /chat"), mustAcquire(t, c, "POST /chat")
		r.mini.Del(spoiledKey)
		r.mini.Set(spoiledKey, "garbage")
		given.Release()
		for range 90 {
			mustAcquire(t, c, "POST /video").Release() // the releases go with it, if they can
			mustAcquire(t, c, "").Release()
		}
		if len(log.errs) > 0 {
			t.Errorf("callers of other endpoints got %v", log.errs)
		}

		var bad *KeyError
		for range 10 {
			if _, err := c.Acquire(context.Background(), Request{Endpoint: "POST /chat"}); !errors.As(err, &bad) || bad.Key != spoiledKey {
				t.Errorf("error %v, want one that names the key", err)
			}
		}
		if _, err := c.TryAcquire(context.Background(), Request{Endpoint: "POST /chat"}); !errors.As(err, &bad) || bad.Key != spoiledKey {
			t.Errorf("error %v, want one that names the key", err)
		}

		synctest.Wait()
		r.mini.Del(spoiledKey)
		time.Sleep(lastRetry)
		synctest.Wait()
		mustAcquire(t, c, "POST /chat").Release()
		time.Sleep(time.Second)
		if leases, _ := r.mini.ZMembers(spoiledKey); len(leases) != 1 || leases[0] != kept.lease {
			t.Errorf("leases %q, want %q, told again", leases, kept.lease)
		}
		time.Sleep(time.Minute)
		if err := kept.Valid(); errors.Is(err, ErrLeaseLost) {
			t.Error("the lease that was held all the time is lost")
		}
		closeAll(t, c)
	})
}

// So it is with each of an endpoint's keys, while callers wait there: those who need the key
// hear which it is, and are served when it has been deleted.
func TestEachKeyOfAnEndpointConcernsItAlone(t *testing.T) {
	for _, key := range keysOf("acme").endpoint("POST /chat") {
		t.Run(key, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				policy := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}
				a, b := r.worker("a", policy), r.worker("b", policy)
				held := mustAcquire(t, a, "POST /chat")
				done := make(chan error, 1)
				go func() {
					p, err := b.Acquire(t.Context(), Request{Endpoint: "POST /chat"})
					if err == nil {
						p.Release()
					}
					done <- err
				}()
				time.Sleep(time.Second)
				r.mini.Del(key)
				r.mini.Set(key, "garbage")
				held.Release()
				for range 90 {
					mustAcquire(t, a, "").Release()
					mustAcquire(t, b, "").Release()
				}
				time.Sleep(15 * time.Second) // no wait for a slot is longer before it asks again
				var bad *KeyError
				select {
				case err := <-done:
					if err != nil && (!errors.As(err, &bad) || bad.Key != key) {
						t.Errorf("error %v, want one that names the key", err)
					}
				case <-time.After(2 * time.Second): // it may have asked just before
					t.Error("the caller still waits")
				}
				synctest.Wait()
				r.mini.Del(key)
				mustAcquire(t, a, "POST /chat").Release()
				closeAll(t, a, b)
			})
		})
	}
}

// What the API says of the whole account, in a response of a spoiled endpoint, is told.
func TestAPauseIsToldFromASpoiledEndpoint(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		policy := Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}
		a, b := r.worker("a", policy), r.worker("b", policy)
		held := mustAcquire(t, a, "POST /chat")
		mustAcquire(t, b, "").Release()
		r.mini.Del(spoiledKey)
		r.mini.Set(spoiledKey, "garbage")
		if _, err := a.TryAcquire(t.Context(), Request{Endpoint: "POST /chat"}); err == nil {
			t.Error("a slot of a spoiled endpoint was granted")
		}
		held.Report(Feedback{Status: 429, Limit: 600, Remaining: 0, Reset: -1, RetryAfter: 20 * time.Second})
		time.Sleep(time.Second)
		begun := time.Now()
		mustAcquire(t, b, "").Release()
		if waited := time.Since(begun); waited < 18*time.Second {
			t.Errorf("served %v after the API had asked for 20 s", waited)
		}
		synctest.Wait()
		r.mini.Del(spoiledKey)
		closeAll(t, a, b)
	})
}

// A job's key that holds something else is as good as deleted.
func TestAJobsKeyOfAnotherTypeCostsItsSlotAlone(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /video", Slots: 3, JobTTL: time.Hour}}})
		for _, job := range []string{"done", "seen", "well"} {
			mustAcquire(t, c, "POST /video").BindJob(job)
		}
		time.Sleep(time.Second)
		for _, job := range []string{"done", "seen"} {
			r.mini.Del(c.keys.job("POST /video", job))
			r.mini.RPush(c.keys.job("POST /video", job), "garbage")
		}
		c.JobDone("POST /video", "done")
		c.JobSeen("POST /video", "seen")
		c.JobDone("POST /video", "well")
		time.Sleep(time.Second)
		mustAcquire(t, c, "POST /video").Release()
		if s, err := c.State(t.Context()); err != nil || s.Endpoints[0].InUse > 3 || s.Endpoints[0].InUse < 2 {
			t.Errorf("%+v, %v; want the slots of the two taken still", s.Endpoints, err)
		}
		closeAll(t, c)
	})
}

// Workers that come back from an outage tell what they can, whatever one endpoint's key holds.
func TestASpoiledKeyKeepsNobodyAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, link := r.linked("a", Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 3}}}, OwnShare)
		held := mustAcquire(t, c, "POST /chat")
		time.Sleep(15 * time.Second) // it knows that it is alone
		link.setCut(true)
		mustAcquire(t, c, "")
		held.Release()
		r.mini.Del(spoiledKey)
		r.mini.Set(spoiledKey, "garbage")
		link.setCut(false)
		time.Sleep(10 * time.Second)
		if p := mustAcquire(t, c, ""); p.alone {
			t.Error("the worker is still alone")
		}
		synctest.Wait()
		r.mini.Del(spoiledKey)
		mustAcquire(t, c, "POST /chat")
		closeAll(t, c)
	})
}

// Close gives back what it can.
func TestCloseBesideASpoiledKeyReturnsTheOtherLeases(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 3}, {Pattern: "POST /video", Slots: 1}}})
		mustAcquire(t, c, "POST /chat")
		mustAcquire(t, c, "POST /video")
		r.mini.Del(spoiledKey)
		r.mini.Set(spoiledKey, "garbage")
		c.Close()
		if r.mini.Exists("fleetlimit:{acme}:slots:POST /video") {
			t.Error("the slot of the other endpoint is still taken")
		}
		r.mini.Del(spoiledKey)
	})
}

// A heartbeat between the moment at which a key is mended and that at which this is noticed
// finds no lease.
func TestWhoMendsAKeyCostsNoLease(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		for wait := range 20 {
			c := r.worker("a", Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 3}}})
			held := mustAcquire(t, c, "POST /chat")
			time.Sleep(5 * time.Second)
			r.mini.Del(spoiledKey)
			r.mini.Set(spoiledKey, "garbage")
			time.Sleep(10*time.Second + time.Duration(wait)*500*time.Millisecond)
			r.mini.Del(spoiledKey)
			time.Sleep(10 * time.Second)
			if isClosed(held.Lost()) {
				t.Errorf("mended after %d half seconds: the lease was lost", wait)
			}
			closeAll(t, c)
			r.mini.FlushAll()
		}
	})
}

// What stays behind is looked at once, however much it is, and is told in its order.
func TestWhatStaysBehindCostsTheOthersNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 3, JobTTL: time.Hour}}}
		c := r.worker("a", p)
		mustAcquire(t, c, "POST /chat").BindJob("job")
		time.Sleep(time.Second)
		r.mini.Del(spoiledKey)
		r.mini.Set(spoiledKey, "garbage")
		time.Sleep(20 * time.Second)
		for range 2 * maxOutbox {
			c.JobSeen("POST /chat", "job")
		}
		c.JobDone("POST /chat", "job")
		mustAcquire(t, c, "").Release()
		time.Sleep(time.Second)
		c.mu.Lock()
		outbox, behind := len(c.outbox), len(c.lanes["POST /chat"].behind)
		c.mu.Unlock()
		if outbox > 0 || behind > maxOutbox {
			t.Errorf("%d operations in the outbox and %d behind, want none, and %d at most", outbox, behind, maxOutbox)
		}
		r.mini.Del(spoiledKey)
		time.Sleep(5 * time.Second)
		if r.mini.Exists("fleetlimit:{acme}:job:POST /chat:job") {
			t.Error("the end of the job was never told")
		}
		closeAll(t, c)
	})
}

// An operator's command that meets a key of another type does nothing at all, and what does
// not need that key works.
func TestAnOperatorsCommandAtASpoiledKeyDoesNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		c := r.worker("a", Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}})
		for range 3 * 60 * 5 { // buckets are about to leave the window
			mustAcquire(t, c, "").Sent()
			time.Sleep(200 * time.Millisecond)
		}
		before := r.used(c)
		r.mini.Set(keysOf("acme").queueOf(chat), "garbage")
		time.Sleep(3 * time.Second)
		o := r.operator()
		for what, command := range map[string]func() error{
			"resume": func() error { _, err := o.Resume(ctx, "acme", true); return err },
			"drain":  func() error { _, err := o.Drain(ctx, "acme", "a", time.Hour, "being replaced"); return err },
		} {
			var bad *KeyError
			if err := command(); !errors.As(err, &bad) {
				t.Errorf("%s: error %v, want a KeyError", what, err)
			}
		}
		if p, err := c.TryAcquire(ctx, Request{}); err != nil {
			t.Errorf("after commands that failed: %v", err)
		} else {
			p.Return()
		}
		if _, err := o.Pause(ctx, "acme", time.Minute, "being repaired"); err != nil {
			t.Errorf("pause: %v", err)
		}
		if _, err := o.Resume(ctx, "acme", false); err != nil {
			t.Errorf("resume: %v", err)
		}
		r.mini.Del(keysOf("acme").queueOf(chat))
		time.Sleep(30 * time.Second)
		if after := r.used(c); after > before-100 {
			t.Errorf("%d requests are in the window half a minute later, of %d: they count as if they were young", after, before)
		}
		closeAll(t, c)
	})
}

// What is told again and again, while a key of the budget is of another type, is counted once.
func TestWhatIsToldAtASpoiledBudgetIsCountedOnce(t *testing.T) {
	for what, key := range map[string]string{
		"queue": keysOf("acme").queue(), "due": keysOf("acme").due(), "backoff": keysOf("acme").backoff(),
	} {
		t.Run(what, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				c, l := r.linked("a", Policy{Limit: 600, Headroom: 1, Burst: 10}, OwnShare)
				mustAcquire(t, c, "")
				time.Sleep(2 * time.Minute)
				l.setCut(true)
				sent := len(acquireMany([]*Coordinator{c}, "", 40, 30*time.Second))
				r.mini.Set(key, "garbage")
				l.setCut(false)
				time.Sleep(20 * time.Second)
				r.mini.Del(key)
				time.Sleep(10 * time.Second)
				if used := r.used(c); sent != 40 || used != sent {
					t.Errorf("%d requests were sent, and %d are counted", sent, used)
				}
				closeAll(t, c)
			})
		})
	}
}

// So it is with a request that was sent once more.
func TestARequestThatWasSentAgainIsCountedOnceAtASpoiledPause(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 600, Headroom: 1})
		mustAcquire(t, c, "")
		time.Sleep(2 * time.Minute)
		p := mustAcquire(t, c, "")
		p.Sent()
		time.Sleep(time.Second)
		r.mini.Set(keysOf("acme").backoff(), "garbage")
		p.Sent()
		for range 20 {
			ctx, cancel := within(time.Second)
			if _, err := c.Acquire(ctx, Request{}); err == nil {
				t.Error("a permit, though nobody can read whether there is a pause")
			}
			cancel()
			time.Sleep(time.Second)
		}
		r.mini.Del(keysOf("acme").backoff())
		time.Sleep(5 * time.Second)
		if used := r.used(c); used != 2 {
			t.Errorf("2 requests were sent, and %d are counted", used)
		}
		closeAll(t, c)
	})
}

// A place that is to be left, at an endpoint that is spoiled, may be taken anew when it is
// mended: leaving it then would leave its callers behind.
func TestNobodyLeavesAPlaceThatWasTakenAnew(t *testing.T) {
	c := &Coordinator{lanes: map[string]*lane{chat: {name: chat, spoiled: new(KeyError)}}}
	l := c.lanes[chat]
	c.outbox = []op{{kind: opLeave, lane: l}, {kind: opDone, lane: l, job: "job"}}
	c.stayBehind()
	if len(c.outbox) != 0 || len(l.behind) != 1 || l.behind[0].kind != opDone {
		t.Errorf("behind: %+v, want the end of the job alone", l.behind)
	}
}
