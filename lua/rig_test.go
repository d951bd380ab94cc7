package lua

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// epoch is the virtual time at which every test begins, in microseconds.
const epoch = 1_800_000_000_000_000

// A server runs the scripts under a virtual clock: miniredis, whose own clock is
// set, or a real Redis, where the scripts read the clock from a key instead.
type server struct {
	rdb     *redis.Client
	mini    *miniredis.Miniredis // nil: a real Redis
	prefix  string
	micros  int64 // the virtual time
	written int64 // the virtual time that the real Redis knows

	// confined, if set, returns a client that may touch these keys and no others.
	confined func(f fails, keys []string) *redis.Client

	exchangeScript, renewScript, inspectScript *redis.Script
}

// fails is the part of testing.T and rapid.T that the tests need everywhere.
type fails interface {
	Helper()
	Fatalf(format string, args ...any)
}

func onEachServer(t *testing.T, test func(t *testing.T, s *server)) {
	t.Run("miniredis", func(t *testing.T) { test(t, newMini(t)) })
	t.Run("redis", func(t *testing.T) { test(t, newReal(t)) })
}

func newMini(t *testing.T) *server {
	mini := miniredis.RunT(t)
	mini.SetTime(time.UnixMicro(epoch))
	mini.ClockTTL(true)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr(), DisableIdentity: true, Protocol: 2})
	t.Cleanup(func() { rdb.Close() })
	return &server{
		rdb: rdb, mini: mini, prefix: "fleetlimit:{acme}:", micros: epoch,
		exchangeScript: Exchange, renewScript: Renew, inspectScript: Inspect,
	}
}

func newReal(t *testing.T) *server { return newServer(t, redistest.Start(t)) }

func newServer(t *testing.T, r *redistest.Server) *server {
	s := &server{
		rdb: r.Client(t), prefix: "fleetlimit:{" + redistest.Account(t) + "}:", micros: epoch,
	}
	t.Cleanup(func() { s.flush(t) })
	s.exchangeScript = s.underVirtualClock(t, ExchangeSource())
	s.renewScript = s.underVirtualClock(t, policy+renew)
	s.inspectScript = s.underVirtualClock(t, inspect)
	s.writeClock(t)
	return s
}

// underVirtualClock makes a script read the time from a key.
func (s *server) underVirtualClock(t *testing.T, source string) *redis.Script {
	t.Helper()
	const clock = `redis.call('TIME')`
	if n := strings.Count(source, clock); n != 1 {
		t.Fatalf("the script asks %d times for the time, want once:\n%s", n, source)
	}
	return redis.NewScript(strings.Replace(source, clock, s.clockInLua(), 1))
}

func (s *server) clockInLua() string {
	return fmt.Sprintf(`{string.match(redis.call('GET', '%sclock'), '^(%%d+) (%%d+)$')}`, s.prefix)
}

func (s *server) writeClock(f fails) {
	f.Helper()
	if s.mini != nil || s.written == s.micros {
		return
	}
	if err := s.rdb.Set(context.Background(), s.prefix+"clock", s.clockValue(), time.Hour).Err(); err != nil {
		f.Fatalf("setting the virtual clock: %v", err)
	}
	s.written = s.micros
}

func (s *server) clockValue() string { return fmt.Sprintf("%d %d", s.micros/1e6, s.micros%1e6) }

// advance lets virtual time pass; less than zero sets the clock back.
func (s *server) advance(d time.Duration) {
	s.micros += d.Microseconds()
	if s.mini != nil {
		s.mini.SetTime(time.UnixMicro(s.micros))
		s.mini.Exists("") // lets keys expire up to this instant
	}
}

// now is the virtual time in milliseconds, computed as the scripts do.
func (s *server) now() float64 {
	return float64(s.micros/1e6)*1000 + float64(s.micros%1e6)/1000
}

// keys lists the account's keys.
func (s *server) keys(f fails) []string {
	f.Helper()
	if s.mini != nil {
		return s.mini.Keys()
	}
	names, err := s.rdb.Keys(context.Background(), s.prefix+"*").Result()
	if err != nil {
		f.Fatalf("KEYS: %v", err)
	}
	kept := names[:0]
	for _, name := range names {
		if name != s.prefix+"clock" {
			kept = append(kept, name)
		}
	}
	return kept
}

// flush is a FLUSHALL that spares what else a shared Redis holds.
func (s *server) flush(f fails) {
	f.Helper()
	for _, key := range s.keys(f) {
		if err := s.rdb.Del(context.Background(), key).Err(); err != nil {
			f.Fatalf("DEL: %v", err)
		}
	}
}

// reset begins a new case in an empty Redis.
func (s *server) reset(f fails) {
	f.Helper()
	s.flush(f)
	s.advance(time.Duration(epoch-s.micros) * time.Microsecond)
}

func (s *server) requireTTLs(f fails) {
	f.Helper()
	if s.mini != nil {
		for _, key := range s.mini.Keys() {
			if s.mini.TTL(key) <= 0 {
				f.Fatalf("key %s has no TTL", key)
			}
		}
		return
	}
	const withoutTTL = `
		local found = {}
		for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
			if redis.call('PTTL', key) == -1 then found[#found + 1] = key end
		end
		return found`
	found, err := s.rdb.Eval(context.Background(), withoutTTL, nil, s.prefix+"*").StringSlice()
	if err != nil || len(found) > 0 {
		f.Fatalf("keys without TTL: %v %v", found, err)
	}
}

// field reads a number of the account's hash.
func (s *server) field(f fails, name string) float64 {
	f.Helper()
	text, err := s.rdb.HGet(context.Background(), s.prefix+"account", name).Result()
	if err == redis.Nil {
		return 0
	}
	x, bad := strconv.ParseFloat(text, 64)
	if err != nil || bad != nil {
		f.Fatalf("field %s of the account: %q %v", name, text, err)
	}
	return x
}

// score reads an instant from a sorted set.
func (s *server) score(f fails, key, member string) (float64, bool) {
	f.Helper()
	x, err := s.rdb.ZScore(context.Background(), s.prefix+key, member).Result()
	if err == redis.Nil {
		return 0, false
	}
	if err != nil {
		f.Fatalf("ZSCORE %s %s: %v", key, member, err)
	}
	return x, true
}
