package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/integration/fleet"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

const key = "mvra_live_soak"

// leaseTTL outlasts any time for which one worker is cut off from Redis alone: from
// then on it may have its part of the slots beside the others, who use all of them.
const leaseTTL = 15 * time.Second

// veterans are never killed: what grows, grows in them.
const veterans = 2

// A soak is everything that runs.
type soak struct {
	options
	rng    *rand.Rand
	begun  time.Time
	dir    string
	redis  *redistest.Server
	api    *fleet.API
	policy coordinator.Policy

	members []*member
	hired   int
	tally   tally
	most    int   // the limit in force
	seen    int64 // violations so far
}

// A member is a worker and its wires.
type member struct {
	*fleet.Process
	toRedis, toAPI *fleet.Wire
	first          fleet.Report // at rest, before any work
}

// tally sums up what has happened.
type tally struct {
	events                  map[string]int
	killed, restarts        int
	calls, ok, sent, stalls int // of workers that have gone
	errors                  map[string]int
	longest                 time.Duration
}

func (t *tally) add(r fleet.Report) {
	t.calls, t.ok, t.sent, t.stalls = t.calls+r.Calls, t.ok+r.OK, t.sent+r.Sent, t.stalls+r.Stalls
	t.longest = max(t.longest, r.Longest)
	for what, n := range r.Errors {
		t.errors[what] += n
	}
}

// run is a whole soak; good is true if all was well.
func run(ctx context.Context, o options) (good bool, err error) {
	s := &soak{
		options: o, rng: rand.New(rand.NewPCG(o.seed, 1)), most: o.limit,
		tally: tally{events: make(map[string]int), errors: make(map[string]int)},
		policy: coordinator.Policy{
			Limit: o.limit, Window: o.window, Headroom: 1, Jitter: o.jitter, LeaseTTL: leaseTTL,
			Endpoints: []coordinator.Endpoint{
				{Pattern: mavera.Chat, Slots: 10},
				{Pattern: mavera.VideoAnalyses, Slots: 3, JobTTL: 15 * time.Second},
			},
		},
	}
	if s.dir, err = os.MkdirTemp("", "fleetlimit-soak-"); err != nil {
		return false, err
	}
	defer os.RemoveAll(s.dir)
	if s.redis, err = redistest.Launch(s.dir); err != nil {
		return false, err
	}
	defer s.redis.Stop()
	if s.api, err = fleet.ServeAPI(mockapi.Config{
		Limit: o.limit, Window: o.window, Seed: o.seed, Grace: o.jitter, JobDuration: mockapi.Range{Min: time.Second, Max: 4 * time.Second},
		Latency: map[string]mockapi.Latency{
			mavera.Chat: {Mean: time.Second, Jitter: 0.5}, mockapi.GetPersonas: {Mean: 30 * time.Millisecond, Jitter: 0.5},
			mavera.VideoAnalyses: {Mean: 30 * time.Millisecond, Jitter: 0.5}, mockapi.GetVideoAnalysis: {Mean: 10 * time.Millisecond, Jitter: 0.5},
		},
	}); err != nil {
		return false, err
	}
	defer s.api.Close()
	defer func() {
		for _, m := range s.members {
			m.Kill()
			m.toRedis.Close()
			m.toAPI.Close()
		}
	}()
	fmt.Printf("soak: %v with %d processes, %d requests in %v, seed %d\n", o.length, o.workers, o.limit, o.window, o.seed)
	if err := s.hire(o.workers); err != nil {
		return false, err
	}
	s.begun = time.Now()
	if err := s.disturb(ctx); err != nil {
		return false, err
	}
	return s.conclude()
}

// hire starts workers and lets them work.
func (s *soak) hire(n int) error {
	fresh := make([]*member, n)
	errs := make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		s.hired++
		name := fmt.Sprintf("w%d", s.hired)
		starting.Go(func() { fresh[i], errs[i] = s.start(name) })
	}
	starting.Wait()
	for i, m := range fresh {
		if errs[i] != nil {
			return errs[i]
		}
		s.members = append(s.members, m)
	}
	return nil
}

func (s *soak) start(name string) (*member, error) {
	toRedis, err := fleet.NewWire(strings.TrimPrefix(s.redis.URL, "redis://"))
	if err != nil {
		return nil, err
	}
	toAPI, err := fleet.NewWire(s.api.Addr)
	if err != nil {
		return nil, err
	}
	p, err := fleet.Start(fleet.Setup{
		Worker: name, Redis: toRedis.Through(s.redis.URL), API: toAPI.Through(s.api.URL), Key: key, Policy: s.policy,
		Callers:     map[string]int{mockapi.GetPersonas: 3, mavera.Chat: 3, mavera.VideoAnalyses: 1},
		CallTimeout: 2 * time.Minute, RedisTimeout: time.Second,
	})
	if err != nil {
		return nil, err
	}
	m := &member{Process: p, toRedis: toRedis, toAPI: toAPI}
	if m.first, err = m.Rest(); err != nil {
		return nil, err
	}
	return m, m.Work()
}

// dismiss forgets a member that has ended.
func (s *soak) dismiss(m *member) {
	s.tally.add(m.Last())
	m.toRedis.Close()
	m.toAPI.Close()
	for i := range s.members {
		if s.members[i] == m {
			s.members = append(s.members[:i], s.members[i+1:]...)
			return
		}
	}
}

// disturb lets one thing after the other happen until the time is over.
func (s *soak) disturb(ctx context.Context) error {
	var possible []disturbance
	for _, d := range disturbances {
		if contains(s.chosen(), d.name) {
			possible = append(possible, d)
		}
	}
	end := s.begun.Add(s.length)
	// The end is calm, so that what was broken last has time to heal.
	calm := min(s.length/4, s.window+s.jitter)
	s.pause(ctx, min(s.length/8, s.window))
	for ctx.Err() == nil && time.Now().Before(end.Add(-calm)) {
		d := possible[s.rng.IntN(len(possible))]
		s.tally.events[d.name]++
		if err := d.happen(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if err := s.look(); err != nil {
			return err
		}
		s.pause(ctx, s.between(time.Second, s.window/2))
		if err := s.look(); err != nil {
			return err
		}
	}
	s.pause(ctx, time.Until(end))
	return nil
}

// look says what the judge has found new, and fails if a worker has ended that
// nobody has killed.
func (s *soak) look() error {
	if j := s.api.Stats(); fleet.Violations(j) > s.seen {
		s.seen = fleet.Violations(j)
		s.say("VIOLATION: %s", s.status())
	}
	for _, m := range s.members {
		select {
		case <-m.Gone():
			return fmt.Errorf("%s has ended by itself:\n%s", m.Name, m.Stderr())
		default:
		}
	}
	return nil
}

func (s *soak) between(least, most time.Duration) time.Duration {
	if most <= least {
		return least
	}
	return least + time.Duration(s.rng.Int64N(int64(most-least)))
}

// pause waits, and says every ten seconds how things are.
func (s *soak) pause(ctx context.Context, d time.Duration) {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		select {
		case <-ticker.C:
			s.say("%s", s.status())
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *soak) say(format string, args ...any) {
	fmt.Printf("%7s  "+format+"\n", append([]any{time.Since(s.begun).Round(100 * time.Millisecond)}, args...)...)
}

func (s *soak) status() string {
	j := s.api.Stats()
	return fmt.Sprintf("%d requests, %d in the last window of %d; 429s %d; violations: limit %d, slots %d, pauses %d",
		j.Requests, j.InWindow, j.Limit, j.Responses429, j.LimitViolations, j.SlotViolations, j.PauseViolations)
}
