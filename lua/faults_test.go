package lua

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// Keys can go one by one (an operator, an eviction policy), and values can be
// garbage. No error may come of it, no key without TTL, and no stall.
func TestAccountRecoversFromLossAndGarbage(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		rapid.Check(t, func(t *rapid.T) {
			s.reset(t)
			d := newDuel(t, s)
			d.crowd = true
			// Some state first: leases, places, pauses, jobs.
			for range rapid.IntRange(1, 25).Draw(t, "operations") {
				rapid.SampledFrom([]func(*rapid.T){
					d.admit, d.admit, d.together, d.alone(d.release), d.alone(d.giveBack), d.alone(d.late), d.alone(d.spent), d.alone(d.job), d.alone(d.said), d.time,
				}).Draw(t, "operation")(t)
			}
			for range rapid.IntRange(1, 3).Draw(t, "faults") {
				spoil(t, s)
			}
			d.recover(t)
			d.idle(t)
		})
	})
}

// spoilField changes a field of a hash that still exists: on a real Redis, pauses end
// by the real clock.
var spoilField = redis.NewScript(`if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 1`)

// spoil deletes a key, or a field of a hash, or writes garbage into it.
func spoil(t *rapid.T, s *server) {
	keys := s.keys(t)
	if len(keys) == 0 {
		return
	}
	ctx := context.Background()
	key := rapid.SampledFrom(keys).Draw(t, "key")
	garbage := rapid.SampledFrom([]string{"", "x", "-5", "0", "1", "nan", "inf", "1e308", "999999999999999", "1 2 3"}).Draw(t, "garbage")
	var err error
	switch kind := s.rdb.Type(ctx, key).Val(); {
	case rapid.IntRange(0, 1).Draw(t, "how") == 0:
		err = s.rdb.Del(ctx, key).Err()
	case kind == "hash":
		fields := s.rdb.HKeys(ctx, key).Val()
		if len(fields) == 0 {
			return // a pause that has just ended
		}
		field := rapid.SampledFrom(fields).Draw(t, "field")
		if field == "own" || field == "open_n" {
			return // nobody can tell a wrong count from a right one
		}
		err = spoilField.Run(ctx, s.rdb, []string{key}, field, garbage).Err()
	case kind == "zset":
		member := rapid.SampledFrom(s.rdb.ZRange(ctx, key, 0, -1).Val()).Draw(t, "member")
		score := rapid.SampledFrom([]float64{0, 1.1e12, 9.1e14, -9.1e14}).Draw(t, "score")
		err = s.rdb.ZAdd(ctx, key, redis.Z{Member: member, Score: score}).Err()
	case kind == "list":
		err = s.rdb.LSet(ctx, key, 0, garbage).Err()
	}
	if err != nil {
		t.Fatalf("spoiling %s: %v", key, err)
	}
}

// recover: a worker that comes when it is told gets its permit, of budget alone and
// with a slot, when all that the account knew has had time to pass; and what is
// granted from a window after the faults fits the window again.
func (d *duel) recover(t *rapid.T) {
	begin := d.s.now()
	var grants []float64
	usable := newModel(d.p, false, 0).usable() // what the API has reported may be lost
	turn := func(a ask) admission {
		r := d.s.admit(t, d.p, a)
		d.s.requireTTLs(t)
		now, in := d.s.now(), 0
		for range r.granted {
			grants = append(grants, now)
		}
		for _, at := range grants {
			if at > now-d.p.horizon() && at > begin+d.p.horizon() {
				in++
			}
		}
		if in > usable {
			t.Fatalf("%d permits in a window of %d, %v ms after the faults", in, usable, now-begin)
		}
		return r
	}
	for e := -1; e < len(d.p.endpoints); e++ {
		// Pauses, places and the window pass one after the other.
		patience := 4*d.p.horizon() + 4*longestPause + 2*idleTTL
		for asked := 0; ; asked++ {
			r := turn(ask{worker: "z", endpoint: e, n: 1, queue: true})
			if r.granted == 1 {
				break
			}
			if patience -= r.wait; patience < 0 || asked > 2000 {
				t.Fatalf("endpoint %d: not served after %d times in %v ms, gate %s, wait %v", e, asked, d.s.now()-begin, r.gate, r.wait)
			}
			d.s.advance(seconds(r.wait + 0.002))
		}
	}
	for range 10 {
		turn(ask{worker: "z", endpoint: -1, n: min(256, d.p.limit)})
		d.s.advance(seconds(rapid.Float64Range(0, d.p.horizon()/2).Draw(t, "step")))
	}
}

// An endpoint's key holds something else, and exchanges that need it fail when they have
// granted a permit of budget alone. Nobody gets that one, so it is lost; but no window of
// the others' holds more than the limit for it, nor do they stand still.
func TestAnExchangeThatFailsInTheMiddleIsCountedOnce(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		p := limits{
			limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 6,
			endpoints: []endpoint{{name: "POST /chat", slots: 2, lease: 30_000}},
		}
		slots := s.prefix + "slots:POST /chat"
		if err := s.rdb.Set(context.Background(), slots, "garbage", time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		both := append(ask{endpoint: -1, n: 1}.args(), ask{endpoint: 0, n: 1}.args()...)
		var grants []float64
		play := func(d time.Duration, fail bool) (granted int) {
			for i, end := 0, s.now()+float64(d.Milliseconds()); s.now() < end; s.advance(400 * time.Millisecond) {
				if i++; fail && i%5 == 0 {
					s.refuse(t, p, "a", "WRONGTYPE", both)
				}
				r := s.admit(t, p, ask{worker: "b", endpoint: -1, n: 60})
				for range r.granted {
					grants = append(grants, s.now())
				}
				granted += r.granted
				in := 0
				for _, at := range grants {
					if at > s.now()-p.window {
						in++
					}
				}
				if in > p.limit {
					t.Fatalf("%d permits in a window of %d", in, p.limit)
				}
			}
			return granted
		}
		play(2*time.Minute, false)
		if n := play(10*time.Minute, true); n < 300 {
			t.Errorf("%d permits in ten minutes, want at least the 600 less one for each failure", n)
		}
		if err := s.rdb.Del(context.Background(), slots).Err(); err != nil {
			t.Fatal(err)
		}
		play(time.Minute, false)
		if n := play(10*time.Minute, false); n < 590 {
			t.Errorf("%d permits in ten minutes when it was over, want 600", n)
		}
	})
}

// refuse has the script fail with this error.
func (s *server) refuse(f fails, p limits, worker, want string, ops []any) {
	f.Helper()
	s.writeClock(f)
	keys, args := s.exchangeCall(p, worker, ops)
	err := s.exchangeScript.Run(context.Background(), s.rdb, keys, args...).Err()
	if err == nil || !strings.Contains(err.Error(), want) {
		f.Fatalf("the script answered %v, want %s", err, want)
	}
}
