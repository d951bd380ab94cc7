package lua

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// A permit is what a worker in the test remembers of a grant.
type permit struct {
	worker   string
	endpoint int
	seq      int64
	lease    string
	reply    admission
	sent     bool // returned, or left late: neither happens twice
	late     bool
}

func TestAccountAgreesWithModel(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		rapid.Check(t, func(t *rapid.T) {
			s.reset(t)
			d := newDuel(t, s)
			t.Repeat(map[string]func(*rapid.T){
				"admit":      d.admit,
				"admit many": d.admit,
				"together":   d.together,
				"free":       d.alone(d.free),
				"come back":  d.comeBack,
				"release":    d.alone(d.release),
				"return":     d.alone(d.giveBack),
				"late":       d.alone(d.late),
				"spent":      d.alone(d.spent),
				"again":      d.alone(d.again),
				"job":        d.alone(d.job),
				"said":       d.alone(d.said),
				"renew":      d.renew,
				"leave":      d.alone(d.leave),
				"inspect":    d.inspect,
				"time":       d.time,
				"time more":  d.time,
				"flush":      d.flush,
				"":           d.invariants,
			})
			d.idle(t)
		})
	})
}

// A duel is one case: an account in Redis and its model.
type duel struct {
	s         *server
	m         *model
	p         limits
	permits   []permit
	strangers bool // the API reports more than the fleet has sent
	crowd     bool // workers queue
	jumps     bool // the clock is set back
}

func drawLimits(t *rapid.T) limits {
	p := rapid.SampledFrom([]limits{
		{limit: 1, window: 1000, jitter: 50},
		{limit: 3, window: 60_000, jitter: 250},
		{limit: 10, window: 1000, jitter: 0},
		{limit: 60, window: 60_000, jitter: 250},
		{limit: 60, window: 60_000, jitter: 250},
		{limit: 600, window: 60_000, jitter: 250},
		{limit: 40, window: 1_200_000, jitter: 30_000},
	}).Draw(t, "limits")
	p.headroom = rapid.SampledFrom([]float64{1, 1, 0.9, 0.5}).Draw(t, "headroom")
	p.burst = rapid.SampledFrom([]int{1, max(1, p.limit/2), p.limit, p.limit}).Draw(t, "burst")
	p.endpoints = []endpoint{
		{"POST /chat", rapid.IntRange(1, 3).Draw(t, "slots"), 30_000, 30_000},
		// A job whose lease is shorter than that of the call which starts it.
		{"POST /video", rapid.IntRange(1, 3).Draw(t, "slots"), 30_000, 5000},
	}
	return p
}

func newDuel(t *rapid.T, s *server) *duel {
	p := drawLimits(t)
	d := &duel{s: s, p: p, m: newModel(p, s.mini != nil, s.now())}
	odds := func(name string) bool { return rapid.IntRange(0, 2).Draw(t, name) == 0 }
	d.strangers, d.crowd, d.jumps, d.m.silence = odds("strangers"), odds("crowd"), odds("jumps"), odds("silence")
	return d
}

func (d *duel) drawWorker(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "worker")
}

func (d *duel) drawPermit(t *rapid.T, usable func(permit) bool) *permit {
	var fit []int
	for i, p := range d.permits {
		if usable == nil || usable(p) {
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		t.Skip("no such permit")
	}
	// The youngest are of most interest.
	return &d.permits[fit[len(fit)-1-rapid.IntRange(0, min(len(fit)-1, 30)).Draw(t, "permit")]]
}

func (d *duel) ask(t *rapid.T, a ask) admission {
	r := d.s.admit(t, d.p, a)
	d.granted(t, a, r)
	return r
}

// granted checks an admission against the model, and remembers its permits.
func (d *duel) granted(t *rapid.T, a ask, r admission) {
	if d.s.field(t, "silent") > 0 {
		d.m.paceKnown = false
	}
	d.m.admit(t, a, r)
	for seq := r.last - int64(r.granted) + 1; seq <= r.last; seq++ {
		d.permits = append(d.permits, permit{
			worker: a.worker, endpoint: a.endpoint, seq: seq, lease: r.lease(a.worker, seq), reply: r,
		})
	}
}

func (d *duel) admit(t *rapid.T) {
	worker := d.drawWorker(t)
	d.ask(t, d.drawAsk(t, worker, rapid.IntRange(-1, 1).Draw(t, "endpoint")))
}

func (d *duel) drawAsk(t *rapid.T, worker string, endpoint int) ask {
	a := ask{
		worker: worker, endpoint: endpoint,
		n: rapid.SampledFrom([]int{1, 1, 2, 7, 40, d.p.limit, d.p.limit + 5}).Draw(t, "n"),
	}
	a.n = min(a.n, 256)
	if d.crowd {
		a.queue = rapid.Bool().Draw(t, "queue")
		a.headStart = rapid.SampledFrom([]float64{0, 0, 60_000, -60_000}).Draw(t, "head start")
	}
	return a
}

// comeBack: who comes when it was told to, and finds nobody in its way, is served.
func (d *duel) comeBack(t *rapid.T) {
	if d.m.queued || d.strangers {
		t.Skip("others are in the way")
	}
	a := ask{worker: d.drawWorker(t), endpoint: -1, n: 1}
	patience := 3*d.p.horizon() + 2*longestPause
	for asked := 0; ; asked++ {
		r := d.ask(t, a)
		if r.granted == 1 {
			return
		}
		// A bucket that was emptied by returns is waited for in vain; and when the
		// clock was set back by up to a second, time stands still as long.
		if patience -= r.wait; patience < 0 || asked > 15+len(d.permits) {
			t.Fatalf("not served after %d times, gate %s, wait %v", asked, r.gate, r.wait)
		}
		d.pass(time.Duration((r.wait + 0.002) * float64(time.Millisecond)))
	}
}

func (d *duel) pass(by time.Duration) {
	d.s.advance(by)
	d.m.pass(d.s.now())
}

func (d *duel) time(t *rapid.T) {
	window := int(d.p.window)
	most := rapid.SampledFrom([]int{5, 1000, window / d.p.limit, window, window + window/4, 700_000}).Draw(t, "scale, ms")
	by := time.Duration(rapid.IntRange(0, most*1000).Draw(t, "µs")) * time.Microsecond
	if d.jumps && rapid.IntRange(0, 4).Draw(t, "backwards") == 0 {
		by = -by
	}
	d.pass(by)
}

func (d *duel) flush(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		t.Skip("not this time")
	}
	d.s.flush(t)
	silence := d.m.silence
	d.m = newModel(d.p, d.m.expiry, d.s.now())
	d.m.silence = silence
	// What is left of the permits is known to nobody.
	d.permits = nil
}

func (d *duel) invariants(t *rapid.T) {
	d.s.requireTTLs(t)
	for _, field := range []string{"own", "open_n"} {
		if n := d.s.field(t, field); n < 0 || n > 1e6 {
			t.Fatalf("%s is %v", field, n)
		}
	}
	now := d.s.now()
	for e, endpoint := range d.p.endpoints {
		leases, err := d.s.rdb.ZRangeArgs(t.Context(), redis.ZRangeArgs{Key: d.s.prefix + "slots:" + endpoint.name, ByScore: true, Start: "(" + formatMS(now), Stop: "+inf"}).Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(leases) > endpoint.slots {
			t.Fatalf("%d leases of %d slots of %s", len(leases), endpoint.slots, endpoint.name)
		}
		var want []string
		for lease, expiry := range d.m.semaphore[e].leases {
			if expiry > now+0.0015 {
				want = append(want, lease)
			}
		}
		// One that ends at this very instant may count or not: instants are rounded.
		leases = slices.DeleteFunc(leases, func(lease string) bool {
			expiry, there := d.m.semaphore[e].leases[lease]
			return there && math.Abs(expiry-now) <= 0.0015
		})
		slices.Sort(want)
		slices.Sort(leases)
		if !slices.Equal(leases, want) {
			t.Fatalf("leases of %s: %q, want %q", endpoint.name, leases, want)
		}
	}
}

// unmissed is how long a worker counts as alive, in milliseconds, that is not missed in
// a case.
const unmissed = 400_000_000

// idle: an account that nobody uses leaves nothing behind.
func (d *duel) idle(t *rapid.T) {
	if d.s.mini == nil {
		return
	}
	d.s.advance(2 * unmissed * time.Millisecond)
	if left := d.s.mini.Keys(); len(left) > 0 {
		t.Fatalf("an idle account leaves %q", left)
	}
}
