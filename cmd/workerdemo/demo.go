package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

const demoAbout = `Runs a fleet of worker processes that share one API key's budget through Redis,
and shows that the API never has to say 429.

Without flags all that it needs is on board: a Redis in memory, and a strict mock
of the Mavera API whose calls take a hundredth of the real time.

  workerdemo -window fixed              a mock whose window resets
  workerdemo -redis redis://127.0.0.1   a real Redis
  workerdemo -workers 16 -kill          more workers, and one that dies
  workerdemo -http 127.0.0.1:8080       with a live page in the browser
  workerdemo worker -h                  one worker alone
  workerdemo upstream -h                the mock alone
  workerdemo serve -h                   a worker that never ends, with metrics
  workerdemo stranger -h                somebody else on the key

The exit code is 0 only if every request succeeded, with no 429 and no violation;
2 for flags that cannot be used; 130 after Ctrl-C; else 1.

Requests are counted without the polls that ask how a video analysis is doing;
polls take budget all the same. Utilisation is what the API accepted, polls and
retries included, divided by what the tier allows in the time between the first
request and the last, but at least in one minute; it is at most 100 %. A wait is
the time between a caller's call and the sending of its request.`

type demoOptions struct {
	plan              plan
	redis, upstream   string
	key               string
	workers, requests int
	mix               mix
	window            mockapi.Mode
	kill, json        bool
	http              string
}

func parseDemo(args []string, stdout io.Writer) (o demoOptions, err error) {
	fs := newFlagSet("workerdemo", demoAbout, stdout)
	redis := fs.redis("`URL` of a real Redis; default: one in memory", false)
	upstream := fs.upstream("base `URL` of a real API, to which /responses is appended; default: the mock", false)
	key := fs.key()
	tier := fs.tier()
	workers := fs.number("workers", 4, maxWorkers, "`number` of worker processes")
	requests := fs.number("requests", 120, maxRequests, "`number` of requests")
	m := fs.mix()
	window := fs.window()
	headroom := fs.headroom(tier)
	kill := fs.Bool("kill", false, "SIGKILL one worker when half of the requests are done")
	addr := fs.text("http", "", "loopback `address` on which to serve a live page while the demo runs, as in 127.0.0.1:8080")
	json := fs.Bool("json", false, "print one JSON object on stdout at the end, and everything else on stderr")
	fs.checks = append(fs.checks, func() error {
		if *kill && *workers < 2 {
			return badFlag("kill", "true", "somebody must be left: needs at least 2 -workers")
		}
		if *upstream == "" {
			return servedByMock(*m)
		}
		return nil
	})
	if err := fs.parse(args); err != nil {
		return o, err
	}
	o = demoOptions{
		plan:  plan{Tier: *tier, Headroom: *headroom},
		redis: *redis, upstream: *upstream, key: *key, workers: *workers, requests: *requests,
		mix: *m, window: *window, kill: *kill, json: *json, http: *addr,
	}
	if o.upstream == "" {
		o.plan.LeaseTTL, o.plan.JobTTL = demoLeaseTTL, demoJobTTL
	}
	return o, nil
}

// servedByMock is an error if the mix has an endpoint that the mock does not serve.
func servedByMock(m mix) error {
	for _, s := range m {
		switch s.endpoint {
		case mockapi.PostResponses, mockapi.GetPersonas, mockapi.PostGenerations,
			mockapi.PostMaveChat, mockapi.PostFocusGroups, mockapi.PostVideoAnalyses:
		default:
			return badFlag("mix", s.endpoint, "the mock API has no such endpoint")
		}
	}
	return nil
}

func runDemo(ctx context.Context, args []string, t terminal) error {
	o, err := parseDemo(args, t.out)
	if err != nil {
		return err
	}
	var mock *mockapi.API
	if o.redis == "" {
		url, stop, err := startRedis()
		if err != nil {
			return err
		}
		defer stop()
		o.redis = url
	}
	if o.upstream == "" {
		api, url, stop, err := serveMock(mockConfig(o.plan.Tier, o.window, timeScale), "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer stop()
		// The account must be as fresh as the mock, whatever key was given.
		mock, o.upstream, o.key = api, url, madeUpKey()
	}
	if o.key == "" {
		o.key = madeUpKey()
		fmt.Fprintf(t.err, "no API key was given: sending one that is made up\n")
	}

	rig, err := newRig(ctx, o.redis, o.key, o.plan)
	if err != nil {
		return err
	}
	defer rig.close()
	id := runID()
	f := &fleet{
		plan: o.plan, portions: o.mix.split(o.requests), kill: o.kill, scaled: mock != nil,
		view: newView(t.err, o.requests), stats: rig.observer.State,
	}
	f.start = func(name string, callers map[string]int, events chan<- event) (*member, error) {
		s := setup{Worker: name + "-" + id, Redis: o.redis, Upstream: o.upstream, Key: o.key, Plan: o.plan, Callers: callers}
		return spawn(name, s, f.view, events)
	}
	if o.http != "" {
		url, stop, err := servePage(rig.rdb, o.http)
		if err != nil {
			return err
		}
		defer stop()
		f.view.log("the live page is at %s", url)
	}
	names := make([]string, o.workers)
	for i := range names {
		names[i] = fmt.Sprintf("w%d", i+1)
	}
	err = f.run(ctx, names)
	f.view.close()
	if err != nil {
		return err
	}
	var stats *mockapi.Stats
	if mock != nil {
		s := mock.Stats()
		stats = &s
	}
	return conclude(f.summarize(stats), o.json, t)
}

// conclude tells how a run went, and returns an error if it did not go well.
func conclude(s summary, asJSON bool, t terminal) error {
	if asJSON {
		s.writeTable(t.err)
		if err := s.writeJSON(t.out); err != nil {
			return err
		}
	} else {
		s.writeTable(t.out)
	}
	switch {
	case s.Interrupted:
		return errInterrupted
	case !s.ok():
		return errReported
	}
	return nil
}

// A rig is the parent's own connection to Redis.
type rig struct {
	rdb      redis.UniversalClient
	observer *coordinator.Coordinator
	close    func()
}

// newRig makes sure that Redis answers, and reads the account's state there.
func newRig(ctx context.Context, redisURL, key string, p plan) (*rig, error) {
	rdb, err := openRedis(ctx, redisURL)
	if err != nil {
		return nil, err
	}
	// It asks for no permit. Its workers say what is wrong with Redis later on.
	c, err := coordinator.New(rdb, p.policy(), coordinator.Options{APIKey: key, Worker: "observer-" + runID(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		rdb.Close()
		return nil, err
	}
	return &rig{rdb, c, func() { c.Close(); rdb.Close() }}, nil
}
