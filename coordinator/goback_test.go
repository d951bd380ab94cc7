package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// dump keeps what Redis knows now, and returns a function that makes it start again with
// that, as from an old dump, or on a replica that had not heard the rest.
func (r *rig) dump() (load func()) {
	r.t.Helper()
	again, err := redistest.Dump(r.t.Context(), r.rdb)
	if err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := again(); err != nil {
			r.t.Error(err)
		}
	}
}

// acquireMany lets the workers have n permits in turn, as far as they get them within d.
func acquireMany(workers []*Coordinator, endpoint string, n int, d time.Duration) (got []*Permit) {
	ctx, cancel := within(d)
	defer cancel()
	permits := make(chan *Permit, n)
	for i := range n {
		go func() {
			p, err := workers[i%len(workers)].Acquire(ctx, Request{Endpoint: endpoint})
			if err == nil {
				p.Sent()
			}
			permits <- p
		}()
	}
	for range n {
		if p := <-permits; p != nil {
			got = append(got, p)
		}
	}
	return got
}

// A Redis that comes back with an old dump, or without its last writes, has not forgotten the
// account, but what it granted since. The workers know more than it does, and tell it: what it
// knows still is not counted twice, but for its last second, and no slot is lost or given twice.
func TestARedisThatGoesBackInTimeIsToldWhatItHasGrantedSince(t *testing.T) {
	for how, mend := range map[string]func(*rig, []*link, func()){
		"at once": func(_ *rig, links []*link, load func()) {
			load()
			for _, l := range links {
				l.kill()
			}
		},
		"unnoticed": func(_ *rig, _ []*link, load func()) { load() },
		"after an outage": func(_ *rig, links []*link, load func()) {
			for _, l := range links {
				l.setCut(true)
			}
			time.Sleep(time.Second)
			load()
			for _, l := range links {
				l.setCut(false)
			}
		},
	} {
		for _, before := range []int{0, 40} { // requests that the dump knows
			t.Run(fmt.Sprintf("%s/known=%d", how, before), func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, r *rig) {
					const limit = 120
					var log logbook
					workers, links := r.fleetWith(3, Policy{
						Limit: limit, Burst: limit, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 3}},
					}, log.events())
					acquireMany(workers, "", 3, time.Second)
					time.Sleep(2 * time.Minute)
					sent := len(acquireMany(workers, "", before, time.Second))
					time.Sleep(2 * time.Second)
					sent += len(acquireMany(workers, "", 1, time.Second)) // counted twice, as all of the last second
					load := r.dump()
					time.Sleep(5 * time.Second)
					start := time.Now()
					sent += len(acquireMany(workers, "", 50, time.Second))
					held := acquireMany(workers, chat, 3, time.Second)
					if sent != before+51 || len(held) != 3 {
						t.Fatalf("%d requests and %d slots, want %d and all 3", sent, len(held), before+51)
					}
					sent += len(held)
					mend(r, links, load)
					const rest = 40 * time.Second // in which nothing of that leaves the window
					sent += len(acquireMany(workers, "", 2*limit, rest-time.Since(start)))
					if sent > limit || sent < limit-4 {
						t.Errorf("%d requests in a window, want all of the limit, %d, and not one more", sent, limit)
					}
					if log.count(&log.forgot) != len(workers) {
						t.Errorf("%d workers found that Redis had forgotten something, want %d", log.count(&log.forgot), len(workers))
					}
					for _, p := range held {
						if isClosed(p.Lost()) {
							t.Error("a slot that is held was lost")
						}
					}
					var full *WaitError
					if _, err := workers[0].TryAcquire(context.Background(), Request{Endpoint: chat}); !errors.As(err, &full) {
						t.Errorf("error %v, want no fourth slot", err)
					}
					for _, p := range held {
						p.Release()
					}
					time.Sleep(2 * time.Minute)
					if n := len(acquireMany(workers, "", limit, time.Minute)); n < limit {
						t.Errorf("%d requests in a minute, when all is over, want %d", n, limit)
					}
					closeAll(t, workers...)
				})
			})
		}
	}
}

// A worker that is told a number by an account that is no more does not take the next one to
// have gone back.
func TestNumbersOfAnAccountThatIsNoMoreProveNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var log logbook
		workers, _ := r.fleetWith(2, Policy{Limit: 600, Headroom: 1}, log.events())
		acquireMany(workers, "", 2, time.Second)
		account := "fleetlimit:{acme}:account"
		if err := r.rdb.HIncrBy(context.Background(), account, "seq", 1e9).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		acquireMany(workers, "", 2, time.Second)
		r.mini.FlushAll()
		for range 5 {
			acquireMany(workers, "", 2, 10*time.Second)
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if n := log.count(&log.forgot); n != len(workers) {
			t.Errorf("workers found %d times that Redis had forgotten something, want once each", n)
		}
		closeAll(t, workers...)
	})
}

// rested is a fleet whose workers know each other, and whose window, of three minutes, is empty.
func (r *rig) rested(n, limit, burst int) (workers []*Coordinator, links []*link) {
	r.t.Helper()
	workers, links = r.fleetWith(n, Policy{Limit: limit, Burst: burst, Headroom: 1, Window: 3 * time.Minute}, Events{})
	acquireMany(workers, "", n, time.Second)
	time.Sleep(4 * time.Minute)
	return workers, links
}

// Redis starts with the same old dump again, before it has made another: the account that the
// workers know since the first time is younger than the one that the dump knows.
func TestTheSameOldDumpTwice(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 120
		workers, _ := r.rested(3, limit, limit)
		load := r.dump()
		time.Sleep(2 * time.Second)
		sent := len(acquireMany(workers, "", 40, time.Second))
		load()
		sent += len(acquireMany(workers[:1], "", 1, 20*time.Second))
		time.Sleep(20 * time.Second)
		sent += len(acquireMany(workers[1:], "", 50, 20*time.Second))
		load()
		sent += len(acquireMany(workers[:1], "", 2*limit, 110*time.Second))
		if sent > limit || sent < limit-4 {
			t.Errorf("%d requests in a window, want all of the limit, %d, and not one more", sent, limit)
		}
		closeAll(t, workers...)
	})
}

// What a worker spent alone before the dump and told after it is no part of the dump.
func TestAnOldDumpDoesNotKnowWhatWasToldAfterIt(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 120
		workers, links := r.rested(2, limit, limit/4)
		start := time.Now()
		sent := len(acquireMany(workers[:1], "", limit/4, time.Second))
		sent += len(acquireMany(workers[1:], "", 1, 3*time.Second))
		links[1].setCut(true)
		alone := 0
		for time.Since(start) < 70*time.Second {
			alone += len(acquireMany(workers[1:], "", 1, 2*time.Second))
			sent += len(acquireMany(workers[:1], "", 1, 2*time.Second))
		}
		load := r.dump()
		links[1].setCut(false)
		time.Sleep(15 * time.Second)
		sent += alone + len(acquireMany(workers, "", 2, 5*time.Second))
		load()
		sent += len(acquireMany(workers, "", 2*limit, 178*time.Second-time.Since(start)))
		if sent > limit || alone < 15 {
			t.Errorf("%d requests in a window, limit %d; %d of them alone", sent, limit, alone)
		}
		closeAll(t, workers...)
	})
}

// A dump that was made while the workers told again what Redis had forgotten knows only a part.
func TestADumpOfAnAccountThatIsBeingTold(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 120
		workers, links := r.rested(3, limit, limit)
		sent := len(acquireMany(workers, "", 60, time.Second))
		time.Sleep(2 * time.Second)
		r.mini.FlushAll()
		links[2].setCut(true)
		sent += len(acquireMany(workers[:1], "", 1, 10*time.Second))
		time.Sleep(2 * time.Second)
		load := r.dump()
		links[2].setCut(false)
		time.Sleep(20 * time.Second)
		sent += len(acquireMany(workers, "", 3, 10*time.Second))
		load()
		sent += len(acquireMany(workers, "", 2*limit, 125*time.Second))
		if sent > limit {
			t.Errorf("%d requests in a window, limit %d", sent, limit)
		}
		closeAll(t, workers...)
	})
}

// A Redis that forgets everything, and hears of a pause of the API before it hears that it has
// forgotten, has all workers tell at once what they sent: the pause gives them the time.
func TestAFlushInAPauseOfTheAPIIsTold(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 600
		var log logbook
		workers, _ := r.fleetWith(2, Policy{Limit: limit, Burst: limit, Headroom: 1}, log.events())
		for _, c := range workers {
			mustAcquire(t, c, "")
		}
		time.Sleep(2*time.Minute + 500*time.Millisecond) // the last heartbeats are just over
		start := time.Now()
		sent := len(acquireMany(workers[1:], "", limit-20, time.Second))
		p := mustAcquire(t, workers[0], "")
		sent++
		r.mini.FlushAll()
		f := NoFeedback
		f.Status, f.RetryAfter = 429, 6*time.Second
		p.Report(f)
		sent += len(acquireMany(workers[:1], "", 2*limit, 55*time.Second-time.Since(start)))
		if sent > limit || sent < limit-4 {
			t.Errorf("%d requests in a window, want all of the limit, %d, and not one more", sent, limit)
		}
		if n := log.count(&log.alone); n > 0 {
			t.Errorf("%d workers went on alone in the API's pause", n)
		}
		closeAll(t, workers...)
	})
}

// slowReply holds up the reply to one exchange, of those to come: Redis has carried it out.
type slowReply struct {
	commandsOnly
	before atomic.Int32  // how many come first, and this one
	last   time.Duration // how long it is held up
}

func (s *slowReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		n := s.before.Add(-1)
		err := next(ctx, cmd)
		if n == 1 {
			time.Sleep(10 * time.Millisecond) // so that more gathers for the next
		} else if n == 0 {
			time.Sleep(s.last)
		}
		return err
	}
}

// A reply of an account that Redis has forgotten since, which comes after a younger account
// was heard of, grants what that one must be told.
func TestAReplyOfAForgottenAccountIsTold(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 120
		rdb, slow := r.client(), &slowReply{last: 90 * time.Millisecond}
		defer rdb.Close()
		rdb.AddHook(slow)
		c := r.begin(rdb, Policy{Limit: limit, Burst: limit, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 2}}}, Options{Worker: "a"})
		mustAcquire(t, c, "")
		time.Sleep(2*time.Minute + 500*time.Millisecond)
		start := time.Now()
		slow.before.Store(2)
		got := make(chan []*Permit, 2)
		go func() { got <- acquireMany([]*Coordinator{c}, chat, 2, 5*time.Second) }()
		go func() { got <- acquireMany([]*Coordinator{c}, "", 100, 900*time.Millisecond) }()
		time.Sleep(30 * time.Millisecond)
		r.mini.FlushAll()
		time.Sleep(30 * time.Millisecond)
		_, err := c.TryAcquire(context.Background(), Request{}) // another connection is quicker
		if err == nil {
			t.Error("Redis knows what it has granted: the test tries nothing")
		}
		held := append(<-got, <-got...)
		sent := len(held)
		if sent < 50 {
			t.Fatalf("%d requests were granted: the test tries too little", sent)
		}
		sent += len(acquireMany([]*Coordinator{c}, "", 2*limit, 50*time.Second-time.Since(start)))
		if sent > limit {
			t.Errorf("%d requests in a window of %d", sent, limit)
		}
		for _, p := range held {
			if isClosed(p.Lost()) {
				t.Error("a slot that is held was lost")
			}
		}
		if leases, err := r.mini.ZMembers(keysOf("acme").slotsOf(chat)); err != nil || len(leases) != 2 {
			t.Errorf("leases %q, %v: want those of the 2 that are held", leases, err)
		}
		closeAll(t, c)
	})
}

// Who waits when Redis forgets a long pause asks anew, and does not sleep until its end.
func TestWhoWaitsIsServedWhenRedisForgetsThePause(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", Policy{Limit: 600, Headroom: 1}), r.worker("b", Policy{Limit: 600, Headroom: 1})
		mustAcquire(t, a, "")
		mustAcquire(t, b, "")
		time.Sleep(2 * time.Minute)
		p := mustAcquire(t, a, "")
		if _, err := r.operator().Pause(context.Background(), "acme", time.Hour, "being repaired"); err != nil {
			t.Fatal(err)
		}
		waits := acquireSoon(b, "")
		time.Sleep(time.Second)
		r.mini.FlushAll()
		start := time.Now()
		f := NoFeedback
		f.Status, f.RetryAfter = 429, time.Second
		p.Report(f)
		if took := (<-waits).Sub(start); took > 10*time.Second {
			t.Errorf("waited %v", took)
		}
		closeAll(t, a, b)
	})
}

// A reply of a forgotten account that comes after this worker has told all to a younger one is
// no reason to tell it all again.
func TestALateReplyHasNothingToldTwice(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 600
		rdb, slow := r.client(), &slowReply{last: 400 * time.Millisecond}
		defer rdb.Close()
		rdb.AddHook(slow)
		p := Policy{Limit: limit, Burst: limit, Headroom: 1}
		c, other := r.begin(rdb, p, Options{Worker: "a"}), r.worker("b", p)
		mustAcquire(t, c, "")
		mustAcquire(t, other, "")
		time.Sleep(2*time.Minute + 500*time.Millisecond)
		start := time.Now()
		sent := len(acquireMany([]*Coordinator{c}, "", 300, time.Second))
		slow.before.Store(1)
		got := make(chan []*Permit, 1)
		go func() { got <- acquireMany([]*Coordinator{c}, "", 1, time.Second) }()
		time.Sleep(5 * time.Millisecond)
		r.mini.FlushAll()
		time.Sleep(5 * time.Millisecond)
		if _, err := other.TryAcquire(context.Background(), Request{}); err == nil { // it calls all to tell
			t.Error("Redis knows what it has granted: the test tries nothing")
		}
		sent += len(<-got)
		time.Sleep(8 * time.Second)
		if used := r.used(c); used < sent || used > sent+1 {
			t.Errorf("%d requests were sent, and %d are counted", sent, used)
		}
		sent += len(acquireMany([]*Coordinator{c, other}, "", 2*limit, 50*time.Second-time.Since(start)))
		if sent > limit || sent < limit-5 {
			t.Errorf("%d requests in a window, want all of the limit, %d, and not one more", sent, limit)
		}
		closeAll(t, c, other)
	})
}
