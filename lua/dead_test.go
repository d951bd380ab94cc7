package lua

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Dead workers are counted in what one call of a script touches (the arguments and the
// replies of its commands), in the memory of the account while they come, and in what is
// left of them: these are the same on every machine, and time is not.

// counting wraps a script: its last value is how much it has touched.
func counting(script string) string {
	script = strings.ReplaceAll(script, "redis.call(", "counted(")
	script = strings.ReplaceAll(script, "counted('TIME')", "redis.call('TIME')") // the clock is virtual
	return `
		local touched = 0
		local function counted(...)
			local reply = redis.call(...)
			touched = touched + select('#', ...)
			if type(reply) == 'table' then touched = touched + #reply end
			if (...) == 'ZREMRANGEBYSCORE' then touched = touched + reply end
			return reply
		end
		local function decide() ` + script + `
		end
		local reply = decide()
		reply[#reply + 1] = tostring(touched)
		return reply`
}

// A turn is what one worker asks of Redis before it dies.
type turn func(worker string) []scriptCall

type scriptCall struct {
	script *redis.Script
	keys   []string
	args   []any
}

// A graveyard is an account to which workers come to die.
type graveyard struct {
	t    *testing.T
	s    *server
	turn turn
}

// bury lets workers come and die, one after the other, and says how much the costliest
// call has touched and the most bytes that the account has taken meanwhile.
func (g *graveyard) bury(name string, workers int, apart time.Duration) (touched, memory int) {
	g.t.Helper()
	const batch = 100
	for first := 0; first < workers; first += batch {
		var replies []*redis.Cmd
		_, err := g.s.rdb.Pipelined(context.Background(), func(p redis.Pipeliner) error {
			for i := first; i < min(first+batch, workers); i++ {
				p.Set(context.Background(), g.s.prefix+"clock", g.s.clockValue(), time.Hour)
				for _, c := range g.turn(strings.ReplaceAll(name, "#", fmt.Sprint(i))) {
					replies = append(replies, p.EvalSha(context.Background(), c.script.Hash(), c.keys, c.args...))
				}
				g.s.advance(apart)
			}
			return nil
		})
		if err != nil {
			g.t.Fatal(err)
		}
		for _, reply := range replies {
			v, err := reply.StringSlice()
			if err != nil {
				g.t.Fatal(err)
			}
			touched = max(touched, int(parse(g.t, v[len(v)-1])))
		}
		memory = max(memory, g.memory())
	}
	return touched, memory
}

func (g *graveyard) memory() (bytes int) {
	g.t.Helper()
	for _, key := range g.s.keys(g.t) {
		n, err := g.s.rdb.MemoryUsage(context.Background(), key, 0).Result()
		if err != nil && err != redis.Nil { // a key can end in between
			g.t.Fatal(err)
		}
		bytes += int(n)
	}
	return bytes
}

// teeming has room for two in three of the permits that workers want ten times a second,
// so that the others take places, and for hardly any of the calls that need a slot.
var teeming = limits{
	limit: 1200, window: 60_000, jitter: 250, headroom: 1, burst: 300,
	endpoints: []endpoint{{"POST /chat", 2, 30_000, 0}},
}

// inFleet is a turn of ours: a heartbeat, a wish for budget and one for a slot, with a
// place in the queue for what is not granted.
func inFleet(t *testing.T, s *server) turn {
	exchange := s.loaded(t, counting(ExchangeSource()))
	renew := s.loaded(t, counting(policy+renew))
	return func(worker string) []scriptCall {
		beat := scriptCall{script: renew}
		beat.keys, beat.args = s.renewCall(teeming, worker, 30_000, nil)
		calls := []scriptCall{beat}
		for _, a := range []ask{{endpoint: -1, n: 3}, {endpoint: 0, n: 1}} {
			a.worker, a.queue = worker, true
			wish := scriptCall{script: exchange}
			wish.keys, wish.args = s.admitCall(teeming, a)
			calls = append(calls, wish)
		}
		return calls
	}
}

// registered is the naive turn: who has ever come is written down, and every call looks
// through all of them for those that have died.
func registered(t *testing.T, s *server) turn {
	script := s.loaded(t, counting(`
		local t = redis.call('TIME')
		local running = 0
		redis.call('HSET', KEYS[1], ARGV[1], t[1])
		redis.call('PEXPIRE', KEYS[1], 600000)
		for _, seen in ipairs(redis.call('HVALS', KEYS[1])) do
			if tonumber(seen) + 30 > tonumber(t[1]) then running = running + 1 end
		end
		return {tostring(running)}`))
	return func(worker string) []scriptCall {
		return []scriptCall{{script, []string{s.prefix + "clients"}, []any{worker}}}
	}
}

// loaded is a script under the virtual clock that the server knows.
func (s *server) loaded(t *testing.T, source string) *redis.Script {
	t.Helper()
	script := s.underVirtualClock(t, source)
	if err := script.Load(context.Background(), s.rdb).Err(); err != nil {
		t.Fatal(err)
	}
	return script
}

// Seventeen thousand dead clients lay in Redis, and every call walked them all. Here
// workers come, take budget, slots and places, and die; neither what a call touches nor
// the memory grows with how many have died.
func TestTwentyThousandDeadWorkersCostNothing_Bottleneck115(t *testing.T) {
	grows := func(t *testing.T, g *graveyard, workers int) (wrong string) {
		const apart = 100 * time.Millisecond
		g.bury("first-#", workers/5, apart)
		touched, memory := g.bury("early-#", workers/5, apart)
		g.bury("more-#", workers*2/5, apart)
		lateTouched, lateMemory := g.bury("late-#", workers/5, apart)
		t.Logf("a call touches %d and the account takes %d bytes after few, %d and %d after many", touched, memory, lateTouched, lateMemory)
		switch {
		case lateTouched > touched*6/5:
			return fmt.Sprintf("a call touches %d, and %d after %d dead workers", touched, lateTouched, workers)
		case lateMemory > memory*6/5:
			return fmt.Sprintf("the account takes %d bytes, and %d after %d dead workers", memory, lateMemory, workers)
		}
		return ""
	}
	t.Run("naive", func(t *testing.T) {
		s := newReal(t)
		if grows(t, &graveyard{t, s, registered(t, s)}, 2000) == "" {
			t.Error("the naive version does not grow: the test shows nothing")
		}
	})
	t.Run("fleetlimit", func(t *testing.T) {
		s := newReal(t)
		g := &graveyard{t, s, inFleet(t, s)}
		before := g.survive()
		if wrong := grows(t, g, 20_000); wrong != "" {
			t.Error(wrong)
		}
		g.mustForget(before)
	})
}

// Twenty thousand that come and die within a second lie there until each is known to be
// dead; then no call buries more than a hundred of each kind, and none walks them.
func TestTwentyThousandWorkersThatDieAtOnceAreBuriedByTheHundred_Bottleneck115(t *testing.T) {
	s := newReal(t)
	g := &graveyard{t, s, inFleet(t, s)}
	before := g.survive()
	alone, _ := g.bury("survivor", 10, time.Second)
	// Of a dead place its name and its time are read, it is removed from its queue and from
	// the list of who is due, and its owner is overdue: ten for each of a hundred, in two
	// queues. Of those that have been overdue for long the names are read and removed.
	most := alone + 2*10*100 + 2*100 + 100
	if touched, _ := g.bury("dead-#", 20_000, 50*time.Microsecond); touched > most {
		t.Errorf("a call touches %d while 20,000 workers come, want %d at most", touched, most)
	}
	s.advance(5*time.Minute + time.Second) // all have been told to come by then
	if touched, _ := g.bury("survivor", 10, time.Second); touched > most {
		t.Errorf("a call touches %d after 20,000 workers have died, want %d at most", touched, most)
	}
	g.mustForget(before)
}

// survive lets one worker live alone for ten minutes and returns how many entries that
// leaves. (When Redis makes its tables smaller again, and with them the memory, is its own
// affair.)
func (g *graveyard) survive() (entries int) {
	g.t.Helper()
	g.bury("survivor", 600, time.Second)
	return g.entries()
}

// entries counts what all keys of the account hold.
func (g *graveyard) entries() (n int) {
	g.t.Helper()
	ctx := context.Background()
	for _, key := range g.s.keys(g.t) {
		switch kind := g.s.rdb.Type(ctx, key).Val(); kind {
		case "zset":
			n += int(g.s.rdb.ZCard(ctx, key).Val())
		case "hash":
			n += int(g.s.rdb.HLen(ctx, key).Val())
		case "list":
			n += int(g.s.rdb.LLen(ctx, key).Val())
		case "string":
			n++
		case "none": // a key can end in between
		default:
			g.t.Fatalf("%s is a %s", key, kind)
		}
	}
	return n
}

func (g *graveyard) mustForget(before int) {
	g.t.Helper()
	const fields = 20 // of the account that only a fleet has
	if after := g.survive(); after > before+fields {
		g.t.Errorf("the account has %d entries when all but one have been buried, %d before they came", after, before)
	}
	workers, _ := g.s.renew(g.t, teeming, "survivor", 30_000)
	if n := g.s.rdb.ZCard(context.Background(), g.s.prefix+"workers").Val(); workers != 1 || n != 1 {
		g.t.Errorf("%d workers count as alive, %d are written down; want the survivor", workers, n)
	}
	g.s.requireTTLs(g.t)
}
