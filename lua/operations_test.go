package lua

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// settle runs operations and checks what the script answers against the model.
func (d *duel) settle(t *rapid.T, worker string, released int, ops ...any) {
	r := d.s.settle(t, d.p, worker, ops...)
	now := d.m.load()
	if paused := d.m.pauseLeft(0, now); r.released != released || r.epoch != d.m.epoch || !near(r.paused, paused) {
		t.Fatalf("settle answered %+v, want %d released, epoch %d, paused %v", r, released, d.m.epoch, paused)
	}
	if r.paused > longestPause {
		t.Fatalf("a pause of %v", r.paused)
	}
}

func withSlot(p permit) bool { return p.endpoint >= 0 }

// release: also of leases that have been released, have expired, or are another
// worker's.
func (d *duel) release(t *rapid.T) {
	p := d.drawPermit(t, withSlot)
	worker := rapid.SampledFrom([]string{p.worker, p.worker, d.drawWorker(t)}).Draw(t, "who")
	linger := rapid.SampledFrom([]float64{0, 0, 10, 29_000}).Draw(t, "linger")
	now := d.m.load()
	released := d.m.release(now, worker, p.endpoint, p.lease, linger)
	d.settle(t, worker, released, "release", p.endpoint+1, p.lease, linger)
}

// giveBack: of requests that the window still holds, or that have long left it.
func (d *duel) giveBack(t *rapid.T) {
	edge := max(d.m.now, d.m.last) - d.p.horizon()
	p := d.drawPermit(t, func(p permit) bool {
		// Those that leave just now may be counted or not.
		return !p.sent && !slices.ContainsFunc(d.m.log, func(r request) bool {
			return r.seq == p.seq && (r.gone || r.at <= edge)
		})
	})
	now := d.m.load()
	p.sent = true
	released := 0
	if p.endpoint >= 0 {
		released = d.m.release(now, p.worker, p.endpoint, p.lease, 0)
	}
	d.m.giveBack(now, p.seq)
	d.settle(t, p.worker, released, "return", p.endpoint+1, p.lease, p.seq)
}

// spent: requests that were sent while Redis was away.
func (d *duel) spent(t *rapid.T) {
	worker := d.drawWorker(t)
	n := rapid.IntRange(1, 5).Draw(t, "n")
	age := rapid.Float64Range(0, 1.2*d.p.horizon()).Draw(t, "age")
	age = math.Round(age*1000) / 1000 // as exact as an instant in Redis is
	now := d.m.load()
	d.m.spent(now, n, age)
	d.settle(t, worker, 0, "spent", n, age)
}

func (d *duel) late(t *rapid.T) {
	p := d.drawPermit(t, func(p permit) bool { return !p.sent })
	now := d.m.load()
	p.sent, p.late = true, true
	d.m.leftLate(now, p.seq)
	d.settle(t, p.worker, 0, "late", p.seq)
}

// again: the transport has sent a request once more, without asking.
func (d *duel) again(t *rapid.T) {
	d.m.sentAgain(d.m.load())
	d.settle(t, d.drawWorker(t), 0, "again")
}

// job: a lease is bound to a job, the job is seen, the job is done; any order.
func (d *duel) job(t *rapid.T) {
	e := len(d.p.endpoints) - 1
	ttl := d.p.endpoints[e].jobLease
	number := rapid.IntRange(0, len(jobs)-1).Draw(t, "job")
	name, key := jobs[number], jobKey(d.p, number)
	worker := d.drawWorker(t)
	s, j := &d.m.semaphore[e], d.m.jobs[name]
	switch rapid.SampledFrom([]string{"bind", "seen", "done"}).Draw(t, "operation") {
	case "bind":
		p := d.drawPermit(t, func(p permit) bool { return p.endpoint == e })
		now := d.m.load()
		if _, there := s.leases[p.lease]; there && p.worker == worker {
			s.extend(p.lease, now, ttl)
			d.m.jobs[name] = &job{p.lease, ttl}
		}
		d.settle(t, worker, 0, "bind", e+1, p.lease, key, ttl)
	case "seen":
		now := d.m.load()
		if j != nil {
			if _, there := s.leases[j.lease]; there {
				s.extend(j.lease, now, ttl)
				j.kept = ttl
			}
		}
		d.settle(t, worker, 0, "seen", e+1, key, ttl)
	case "done":
		d.m.load()
		released := 0
		if j != nil {
			if _, there := s.leases[j.lease]; there {
				delete(s.leases, j.lease)
				released = 1
			}
			delete(d.m.jobs, name)
		}
		d.settle(t, worker, released, "done", e+1, key)
	}
}

func (d *duel) renew(t *rapid.T) {
	worker := d.drawWorker(t)
	var leases []held
	var lost []string
	for range rapid.IntRange(0, 3).Draw(t, "leases") {
		p := d.drawPermit(t, withSlot)
		leases = append(leases, held{p.endpoint, p.lease})
		expiry, there := d.m.semaphore[p.endpoint].leases[p.lease]
		switch {
		case there && expiry > d.m.now:
			d.m.semaphore[p.endpoint].renew(p.lease, d.m.now, d.p.endpoints[p.endpoint].lease)
		default:
			delete(d.m.semaphore[p.endpoint].leases, p.lease)
			lost = append(lost, p.lease)
		}
	}
	alive := rapid.SampledFrom([]float64{0, d.alive(), 3 * d.alive()}).Draw(t, "alive")
	workers, gone := d.s.renew(t, d.p, worker, alive, leases...)
	if alive > 0 {
		d.m.kept = d.m.accountTTL()
	}
	if !slices.Equal(gone, lost) {
		t.Fatalf("renew lost %q, want %q", gone, lost)
	}
	if workers > 3 || alive > 0 && workers < 1 {
		t.Fatalf("%d workers alive of 3", workers)
	}
}

// alive is for how long workers count as alive: long, unless they may be silent.
func (d *duel) alive() float64 {
	if d.m.silence {
		return 30_000
	}
	return unmissed / 4
}

func (d *duel) leave(t *rapid.T) {
	e := rapid.IntRange(-1, len(d.p.endpoints)-1).Draw(t, "endpoint")
	d.settle(t, d.drawWorker(t), 0, "leave", e+1)
}

// said: what the API says of a permit, honest about what the fleet has sent, or
// not, if there are strangers.
func (d *duel) said(t *rapid.T) {
	p := d.drawPermit(t, nil)
	now := d.m.load()
	limit := rapid.SampledFrom([]int{-1, d.p.limit, d.p.limit, max(1, d.p.limit/3), 2 * d.p.limit}).Draw(t, "limit")
	if p.late {
		limit = -1 // the API counted up to an instant that nobody knows
	}
	s := saying{
		endpoint: p.endpoint, seq: p.seq, admitted: p.reply.at, base: p.reply.last - int64(p.reply.own), epoch: p.reply.epoch,
		status: rapid.SampledFrom([]int{200, 200, 200, 429, 503, 500, 0}).Draw(t, "status"),
		limit:  float64(limit), remaining: -1, reset: -1, retryAfter: -1,
		random: rapid.Float64Range(0, 1).Draw(t, "random"),
	}
	if limit > 0 && rapid.Bool().Draw(t, "remaining is said") {
		remaining := limit
		if d.strangers {
			remaining = rapid.IntRange(0, limit).Draw(t, "remaining")
		}
		s.remaining = float64(remaining)
	}
	if s.status >= 429 && s.status != 500 {
		s.retryAfter = rapid.SampledFrom([]float64{-1, 0, 700, 20_000, 86_400_000}).Draw(t, "retry after")
		s.reset = rapid.SampledFrom([]float64{-1, 5000}).Draw(t, "reset")
	}
	keys, args := d.s.exchangeCall(d.p, p.worker, s.args())
	d.s.run(t, d.s.exchangeScript, keys, args)
	d.m.said(t, now, s, p.reply.last, p.reply.own, d.s.field(t, "foreign"))
	d.settle(t, p.worker, 0)
}

// inspect: an operator is told what the next admission would find.
func (d *duel) inspect(t *rapid.T) {
	d.s.renew(t, d.p, "a", d.alive())
	keys := []string{d.s.prefix + "account", d.s.prefix + "window"}
	for _, e := range d.p.endpoints {
		keys = append(keys, d.s.prefix+"slots:"+e.name)
	}
	text, err := d.s.inspectScript.Run(t.Context(), d.s.rdb, keys).Text()
	if err != nil {
		t.Fatal(err)
	}
	var told map[string]struct {
		Used, Limit float64
		InUse       int `json:"in_use"`
	}
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		t.Fatalf("inspect.lua answered %s: %v", text, err)
	}
	d.settle(t, "a", 0)
	if d.m.last > d.m.now {
		return // the clock was set back: the account is ahead of it
	}
	exact, most := d.m.counted()
	if used := int(told["account"].Used); used < exact || used > most || int(told["account"].Limit) != d.m.usable() {
		t.Fatalf("inspect.lua says %s, want between %d and %d used of %d", text, exact, most, d.m.usable())
	}
	for e, endpoint := range d.p.endpoints {
		if want := len(d.m.semaphore[e].leases) - d.m.expired(e); told["slots:"+endpoint.name].InUse != want {
			t.Fatalf("inspect.lua says %s, want %d slots of %s in use", text, want, endpoint.name)
		}
	}
}

// A heartbeat that was under way when a call was broken off must not keep its slot.
func TestAHeartbeatKeepsNoSlotThatWasGivenBack(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		p := limits{limit: 60, window: 60_000, headroom: 1, burst: 30, endpoints: []endpoint{{"POST /chat", 1, 30_000, 0}}}
		r := s.admit(t, p, ask{worker: "a", endpoint: 0, n: 1})
		lease := r.lease("a", r.last)
		s.settle(t, p, "a", "release", 1, lease, 1000)
		if _, lost := s.renew(t, p, "a", 30_000, held{0, lease}); len(lost) != 1 {
			t.Errorf("lost %q, want the lease that was given back", lost)
		}
		if r := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 1}); r.granted != 0 {
			t.Error("the slot is free at once, want it taken for a second still")
		}
		s.advance(1001 * time.Millisecond)
		if r := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 1}); r.granted != 1 {
			t.Errorf("%+v, want the slot a second later", r)
		}
	})
}

// forget frees what a worker has never heard of, and nothing else.
func TestForgetFreesOnlyWhatWasNotHeardOf(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		p := limits{limit: 60, window: 60_000, headroom: 1, burst: 30, endpoints: []endpoint{{"POST /video", 9, 900_000, 900_000}}}
		grant := func(worker string) (string, int64) {
			r := s.admit(t, p, ask{worker: worker, endpoint: 0, n: 1})
			s.advance(time.Second)
			return r.lease(worker, r.last), r.last
		}
		before, number := grant("a")
		lost, _ := grant("a")
		heard, _ := grant("a")
		other, _ := grant("ab")
		s.advance(10 * time.Second)
		young, _ := grant("a")
		s.settle(t, p, "a", "release", 1, heard, 0, "adopt", 1, "a:1.5:7")
		heard, _ = grant("a")
		if r := s.settle(t, p, "a", "forget", 1, number, 10_000, 1, heard); r.released != 1 {
			t.Errorf("%d leases are freed, want the one whose reply was lost", r.released)
		}
		for _, lease := range []string{before, heard, other, young, "a:1.5:7"} {
			if _, there := s.score(t, "slots:POST /video", lease); !there {
				t.Errorf("lease %s is gone", lease)
			}
		}
		if _, there := s.score(t, "slots:POST /video", lost); there {
			t.Error("the lease that nobody heard of is still there")
		}
	})
}
