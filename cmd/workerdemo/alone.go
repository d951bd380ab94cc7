package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const workerAbout = `Runs one worker alone, with a number of requests of its own. All workers that use
the same Redis and the same API key share the key's budget.

The worker ends when its requests are done, with the exit code of workerdemo.`

// pipeFlag starts a worker whose parent tells it on stdin what to do.
const pipeFlag = "-pipe"

// lastResort is how long a worker may take to end once its parent has gone.
const lastResort = 1500 * time.Millisecond

// runPiped is a worker of a fleet.
func runPiped(in io.Reader, out io.Writer, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	in = &lastWords{in, func() { time.AfterFunc(lastResort, func() { os.Exit(exitFailed) }) }}
	if err := work(ctx, in, out, dial, log); err != nil {
		log.Error("the worker could not start", "error", err)
		return exitFailed
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return exitOK
}

// lastWords calls a function when its reader has ended.
type lastWords struct {
	io.Reader
	ended func()
}

func (r *lastWords) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if err != nil {
		r.ended()
	}
	return n, err
}

func runWorker(ctx context.Context, args []string, t terminal) error {
	fs := newFlagSet("workerdemo worker", workerAbout, t.out)
	redisURL := fs.redis("`URL` of the Redis that the fleet shares (required)", true)
	upstream := fs.upstream("base `URL` of the API, to which /responses is appended (required)", true)
	key := fs.key()
	tier := fs.tier()
	headroom := fs.headroom(tier)
	requests := fs.number("requests", 30, maxRequests, "`number` of requests of this worker")
	m := fs.mix()
	asJSON := fs.Bool("json", false, "print one JSON object on stdout at the end, and everything else on stderr")
	fs.checks = append(fs.checks, func() error {
		if *key == "" {
			return &usageError{"-api-key is missing: workers with the same key share its budget; set it or " + keyVariable}
		}
		return nil
	})
	if err := fs.parse(args); err != nil {
		return err
	}
	p := plan{Tier: *tier, Headroom: *headroom}
	rig, err := newRig(ctx, *redisURL, *key, p)
	if err != nil {
		return err
	}
	defer rig.close()
	f := &fleet{plan: p, portions: m.split(*requests), view: newView(t.err, *requests), stats: rig.observer.State}
	f.start = func(name string, callers map[string]int, events chan<- event) (*member, error) {
		s := setup{Worker: name, Redis: *redisURL, Upstream: *upstream, Key: *key, Plan: p, Callers: callers}
		return engage(name, s, dial, slog.New(slog.NewTextHandler(f.view, nil)), events), nil
	}
	err = f.run(ctx, []string{"worker-" + runID()})
	f.view.close()
	if err != nil {
		return err
	}
	return conclude(f.summarize(nil), *asJSON, t)
}
