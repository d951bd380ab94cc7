package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/integration/fleet"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// A disturbance is something that goes wrong, and is put right in the end.
type disturbance struct {
	name   string
	happen func(ctx context.Context, s *soak) error
}

// disturbances in the order of the help text.
var disturbances = []disturbance{
	{"kill", kill},
	{"restart", func(ctx context.Context, s *soak) error { return restart(ctx, s, true) }},
	{"amnesia", func(ctx context.Context, s *soak) error { return restart(ctx, s, false) }},
	{"hang", hang},
	{"slow-redis", func(ctx context.Context, s *soak) error {
		return onAll(ctx, s, "Redis is slow: 40 ms ± 30 ms", toRedis, "latency", map[string]int{"latency": 40, "jitter": 30})
	}},
	{"thin-redis", func(ctx context.Context, s *soak) error {
		return onAll(ctx, s, "8 KB/s to and from Redis", toRedis, "bandwidth", map[string]int{"rate": 8})
	}},
	{"reset-redis", func(ctx context.Context, s *soak) error {
		return onOne(ctx, s, "connections to Redis are reset in mid-reply", toRedis, "limit_data", map[string]int{"bytes": 150})
	}},
	{"slow-api", func(ctx context.Context, s *soak) error {
		return onAll(ctx, s, "the API is slow: a fifth of the jitter", toAPI, "latency",
			map[string]int{"latency": int(s.jitter.Milliseconds() / 5), "jitter": int(s.jitter.Milliseconds() / 10)})
	}},
	{"reset-api", func(ctx context.Context, s *soak) error {
		return onOne(ctx, s, "connections to the API are reset in mid-reply", toAPI, "limit_data", map[string]int{"bytes": 300})
	}},
	{"cut", cut},
	{"errors", apiErrors},
	{"pushback", pushback},
	{"tier", tier},
	{"failover", scripts},
}

func names() (all []string) {
	for _, d := range disturbances {
		all = append(all, d.name)
	}
	return all
}

// anyone picks a member; some are spared.
func (s *soak) anyone(spared int) *member {
	return s.members[spared+s.rng.IntN(len(s.members)-spared)]
}

// kill ends a worker as a crash would, and starts another in its place. What it had
// sent in the window must not be forgotten with it: Redis is left alone that long.
func kill(ctx context.Context, s *soak) error {
	m := s.anyone(min(veterans, len(s.members)-1))
	m.Kill()
	s.tally.killed++
	s.dismiss(m)
	s.say("%s is killed", m.Name)
	s.pause(ctx, s.between(0, 2*time.Second))
	if err := s.hire(1); err != nil {
		return err
	}
	s.say("%s takes its place", s.members[len(s.members)-1].Name)
	s.pause(ctx, s.window+s.jitter)
	return nil
}

// restart kills Redis and starts it again a while later, with or without its memory.
func restart(ctx context.Context, s *soak, remember bool) error {
	down := s.between(100*time.Millisecond, 4*time.Second)
	file := filepath.Join(s.dir, "dump.rdb")
	if remember {
		rdb := s.toServer()
		err := rdb.Save(ctx).Err()
		rdb.Close()
		if err != nil && ctx.Err() == nil {
			return err
		}
		s.say("Redis is killed, and back with its memory in %v", down.Round(time.Millisecond))
	} else {
		s.say("Redis is killed, and back without its memory in %v", down.Round(time.Millisecond))
	}
	s.redis.Stop()
	if !remember {
		_ = os.Remove(file) // there may be none
	}
	s.pause(ctx, down)
	if err := s.redis.Restart(); err != nil {
		return err
	}
	s.tally.restarts++
	s.pause(ctx, settling)
	return nil
}

// settling is how long the fleet may need after an outage of Redis: up to three seconds
// to notice its end, and five in which all workers tell what they spent. Who is cut off
// before has been away longer than the cut lasts, see leaseTTL.
const settling = 8 * time.Second

// hang lets Redis accept connections and answer nothing.
func hang(ctx context.Context, s *soak) error {
	d := s.between(500*time.Millisecond, 4*time.Second)
	s.say("Redis hangs for %v", d.Round(time.Millisecond))
	if err := s.redis.Freeze(); err != nil {
		return err
	}
	s.pause(ctx, d)
	if err := s.redis.Thaw(); err != nil {
		return err
	}
	s.pause(ctx, settling)
	return nil
}

// scripts makes Redis forget the scripts and all connections, as the new master does
// after a failover.
func scripts(ctx context.Context, s *soak) error {
	s.say("Redis forgets its scripts and drops all connections")
	rdb := s.toServer()
	defer rdb.Close()
	if err := rdb.ScriptFlush(ctx).Err(); err != nil {
		return err
	}
	return rdb.Do(ctx, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err()
}

// toServer is a client of Redis that goes by no wire.
func (s *soak) toServer() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: strings.TrimPrefix(s.redis.URL, "redis://"), DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience,
	})
}

// patience is for Redis where nothing is broken: a busy machine may let it wait, and the
// judge's counts are the subject, not how soon it answers.
const patience = 2 * time.Minute

func toRedis(m *member) *fleet.Wire { return m.toRedis }

func toAPI(m *member) *fleet.Wire { return m.toAPI }

// onAll makes the replies of a wire bad for all members, for a while.
func onAll(ctx context.Context, s *soak, what string, wire func(*member) *fleet.Wire, toxic string, attributes map[string]int) error {
	return spoil(ctx, s, what, s.members, wire, toxic, attributes)
}

func onOne(ctx context.Context, s *soak, what string, wire func(*member) *fleet.Wire, toxic string, attributes map[string]int) error {
	m := s.anyone(0)
	return spoil(ctx, s, m.Name+": "+what, []*member{m}, wire, toxic, attributes)
}

func spoil(ctx context.Context, s *soak, what string, of []*member, wire func(*member) *fleet.Wire, toxic string, attributes map[string]int) error {
	d := s.between(time.Second, 4*time.Second)
	s.say("%s, for %v", what, d.Round(time.Millisecond))
	for _, m := range of {
		if err := wire(m).Add(toxic, fleet.Replies, attributes); err != nil {
			return err
		}
	}
	s.pause(ctx, d)
	for _, m := range of {
		wire(m).Heal()
	}
	if len(of) == 1 {
		s.pause(ctx, returning)
	}
	return nil
}

// returning is how long a worker that was cut off may need to notice that it is not
// any more. Two cuts without that between would be one long one, see leaseTTL.
const returning = 4 * time.Second

// cut refuses one worker's connections to Redis.
func cut(ctx context.Context, s *soak) error {
	m, d := s.anyone(0), s.between(time.Second, 4*time.Second)
	s.say("%s is cut off from Redis for %v", m.Name, d.Round(time.Millisecond))
	m.toRedis.Cut()
	s.pause(ctx, d)
	if err := m.toRedis.Mend(); err != nil {
		return err
	}
	s.pause(ctx, returning)
	return nil
}

// apiErrors lets a fifth of the requests fail in all the ways that take budget.
func apiErrors(ctx context.Context, s *soak) error {
	s.say("the API fails: 500, 503 with Retry-After, answers that break off")
	for _, f := range []mockapi.Fault{
		{Kind: mockapi.FaultError, Probability: 0.1},
		{Kind: mockapi.FaultError, Status: 503, RetryAfter: time.Second, Count: 1},
		{Kind: mockapi.FaultCutAfter, Probability: 0.05, Endpoint: mavera.Chat},
		{Kind: mockapi.FaultCut, Probability: 0.05, Endpoint: mockapi.GetPersonas},
	} {
		if err := s.api.Inject(f); err != nil {
			return err
		}
	}
	s.pause(ctx, s.between(time.Second, 5*time.Second))
	s.api.ClearFaults()
	return nil
}

// pushback is a 429 that nobody has caused; all must heed it.
func pushback(ctx context.Context, s *soak) error {
	s.say("the API pushes back for two seconds")
	if err := s.api.Inject(mockapi.Fault{Kind: mockapi.FaultSurprise429, RetryAfter: 2 * time.Second, Hold: true}); err != nil {
		return err
	}
	s.pause(ctx, 3*time.Second)
	s.api.ClearFaults()
	return nil
}

// tier changes the limit without notice, as an upgrade or a downgrade does.
func tier(ctx context.Context, s *soak) error {
	for was := s.most; s.most == was; {
		s.most = []int{s.limit, s.limit / 2, s.limit / 4}[s.rng.IntN(3)]
	}
	s.say("the API now allows %d requests", s.most)
	return s.api.SetLimit(s.most)
}
