package lua

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A deed is an operation of a worker, other than admit.
type deed struct {
	args []any
	// done takes it over into the model, and says how many leases it frees.
	done func(now float64) (released int)
}

// alone makes an exchange of one operation.
func (d *duel) alone(draw func(*rapid.T, string) deed) func(*rapid.T) {
	return func(t *rapid.T) {
		worker := d.drawWorker(t)
		d.exchange(t, worker, []deed{draw(t, worker)}, nil)
	}
}

// together is an exchange as busy coordinators have them: several operations, and asks for
// different endpoints.
func (d *duel) together(t *rapid.T) {
	worker := d.drawWorker(t)
	var deeds []deed
	for range rapid.IntRange(0, 4).Draw(t, "operations") {
		deeds = append(deeds, rapid.SampledFrom([]func(*rapid.T, string) deed{
			d.release, d.free, d.giveBack, d.late, d.spent, d.again, d.job, d.leave,
		}).Draw(t, "operation")(t, worker))
	}
	if rapid.IntRange(0, 3).Draw(t, "the API has spoken") == 0 {
		deeds = append(deeds, d.said(t, worker)) // last: then what it tells of strangers can be read afterwards
	}
	var asks []ask
	for _, e := range rapid.Permutation([]int{-1, 0, 1}).Draw(t, "endpoints")[:rapid.IntRange(2, 3).Draw(t, "asks")] {
		asks = append(asks, d.drawAsk(t, worker, e))
	}
	d.exchange(t, worker, deeds, asks)
}

// exchange checks what the script answers against the model, which does one thing after
// the other.
func (d *duel) exchange(t *rapid.T, worker string, deeds []deed, asks []ask) {
	var ops []any
	for _, one := range deeds {
		ops = append(ops, one.args...)
	}
	for _, a := range asks {
		ops = append(ops, a.args()...)
	}
	r, v := d.s.exchange(t, d.p, worker, len(asks), ops)
	now := d.m.load()
	released := 0
	for _, one := range deeds {
		released += one.done(now)
	}
	for i, a := range asks {
		d.granted(t, a, parseAdmission(t, v, i, a))
	}
	if paused := d.m.pauseLeft(0, now); r.released != released || r.epoch != d.m.epoch || !near(r.paused, paused) {
		t.Fatalf("exchange.lua answered %+v, want %d released, epoch %d, paused %v", r, released, d.m.epoch, paused)
	}
	if r.paused > longestPause {
		t.Fatalf("a pause of %v", r.paused)
	}
}

func withSlot(p permit) bool { return p.endpoint >= 0 }

// release: also of leases that have been released, have expired, or are another
// worker's.
func (d *duel) release(t *rapid.T, worker string) deed {
	p := *d.drawPermit(t, d.mostlyOf(t, worker, withSlot))
	linger := rapid.SampledFrom([]float64{0, 0, 10, 29_000}).Draw(t, "linger")
	return deed{[]any{"release", p.endpoint + 1, p.lease, linger}, func(now float64) int {
		return d.m.release(now, worker, p.endpoint, p.lease, linger)
	}}
}

// mostlyOf: now and then a worker names what is another's.
func (d *duel) mostlyOf(t *rapid.T, worker string, usable func(permit) bool) func(permit) bool {
	if rapid.IntRange(0, 3).Draw(t, "anybody's") == 0 {
		return usable
	}
	return func(p permit) bool { return p.worker == worker && usable(p) }
}

// free: as release, of several at once; the same one twice, perhaps.
func (d *duel) free(t *rapid.T, worker string) deed {
	e := rapid.IntRange(0, len(d.p.endpoints)-1).Draw(t, "endpoint")
	var leases []any
	for range rapid.IntRange(1, 3).Draw(t, "leases") {
		leases = append(leases, d.drawPermit(t, d.mostlyOf(t, worker, func(p permit) bool { return p.endpoint == e })).lease)
	}
	return deed{append([]any{"free", e + 1, len(leases)}, leases...), func(now float64) (released int) {
		for _, lease := range leases {
			released += d.m.release(now, worker, e, lease.(string), 0)
		}
		return released
	}}
}

// giveBack: of requests that the window still holds, or that have long left it.
func (d *duel) giveBack(t *rapid.T, worker string) deed {
	edge := max(d.m.now, d.m.last) - d.p.horizon()
	p := d.drawPermit(t, func(p permit) bool {
		// Those that leave just now may be counted or not.
		return p.worker == worker && !p.sent && !slices.ContainsFunc(d.m.log, func(r request) bool {
			return r.seq == p.seq && (r.gone || r.at <= edge)
		})
	})
	p.sent = true
	e, lease, seq := p.endpoint, p.lease, p.seq
	return deed{[]any{"return", e + 1, lease, seq}, func(now float64) (released int) {
		if e >= 0 {
			released = d.m.release(now, worker, e, lease, 0)
		}
		d.m.giveBack(now, seq)
		return released
	}}
}

// spent: requests that were sent while Redis was away.
func (d *duel) spent(t *rapid.T, _ string) deed {
	n := rapid.IntRange(1, 5).Draw(t, "n")
	age := rapid.Float64Range(0, 1.2*d.p.horizon()).Draw(t, "age")
	age = math.Round(age*1000) / 1000 // as exact as an instant in Redis is
	return deed{[]any{"spent", n, age}, func(now float64) int { d.m.spent(now, n, age); return 0 }}
}

func (d *duel) late(t *rapid.T, worker string) deed {
	p := d.drawPermit(t, func(p permit) bool { return p.worker == worker && !p.sent })
	p.sent, p.late = true, true
	seq := p.seq
	return deed{[]any{"late", seq}, func(now float64) int { d.m.leftLate(now, seq); return 0 }}
}

// again: the transport has sent a request once more, without asking.
func (d *duel) again(*rapid.T, string) deed {
	return deed{[]any{"again"}, func(now float64) int { d.m.sentAgain(now); return 0 }}
}

// job: a lease is bound to a job, the job is seen, the job is done; any order.
func (d *duel) job(t *rapid.T, worker string) deed {
	e := len(d.p.endpoints) - 1
	ttl := d.p.endpoints[e].jobLease
	number := rapid.IntRange(0, len(jobs)-1).Draw(t, "job")
	name, key := jobs[number], jobKey(d.p, number)
	switch rapid.SampledFrom([]string{"bind", "seen", "done"}).Draw(t, "what of the job") {
	case "bind":
		p := *d.drawPermit(t, d.mostlyOf(t, worker, func(p permit) bool { return p.endpoint == e }))
		return deed{[]any{"bind", e + 1, p.lease, key, ttl}, func(now float64) int {
			s := &d.m.semaphore[e]
			if _, there := s.leases[p.lease]; there && p.worker == worker {
				s.extend(p.lease, now, ttl)
				d.m.jobs[name] = &job{p.lease, ttl}
			}
			return 0
		}}
	case "seen":
		return deed{[]any{"seen", e + 1, key, ttl}, func(now float64) int {
			s, j := &d.m.semaphore[e], d.m.jobs[name]
			if j != nil {
				if _, there := s.leases[j.lease]; there {
					s.extend(j.lease, now, ttl)
					j.kept = ttl
				}
			}
			return 0
		}}
	}
	return deed{[]any{"done", e + 1, key}, func(float64) (released int) {
		s, j := &d.m.semaphore[e], d.m.jobs[name]
		if j != nil {
			if _, there := s.leases[j.lease]; there {
				delete(s.leases, j.lease)
				released = 1
			}
			delete(d.m.jobs, name)
		}
		return released
	}}
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

func (d *duel) leave(t *rapid.T, _ string) deed {
	e := rapid.IntRange(-1, len(d.p.endpoints)-1).Draw(t, "endpoint")
	return deed{[]any{"leave", e + 1}, func(float64) int { return 0 }}
}

// said: what the API says of a permit, honest about what the fleet has sent, or
// not, if there are strangers.
func (d *duel) said(t *rapid.T, worker string) deed {
	p := *d.drawPermit(t, func(p permit) bool { return p.worker == worker })
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
	return deed{s.args(), func(now float64) int {
		d.m.said(t, now, s, p.reply.last, p.reply.own, d.s.field(t, "foreign"))
		return 0
	}}
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
	d.exchange(t, "a", nil, nil)
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
