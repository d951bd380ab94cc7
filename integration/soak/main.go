// Soak runs a fleet of real processes against a real Redis and a strict API for as
// long as you like, and breaks things all the while: workers are killed,
// Redis is killed, restarted with and without its memory, and hung, wires are slow,
// cut and reset, the API fails and changes its limit.
//
//	make soak                    ten minutes
//	make soak ARGS='-for 1h'     any length
//	make soak ARGS='-h'          all flags
//
// It prints a line for whatever it does and one every ten seconds, and a report at
// the end. The exit code is 0 only if the judge has counted no violation, every
// caller was served in the end, and nothing has grown: goroutines, memory and open
// files of the workers that lived, connections and keys of Redis.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/integration/fleet"
)

// options are the flags.
type options struct {
	length  time.Duration
	workers int
	limit   int
	window  time.Duration
	jitter  time.Duration
	seed    uint64
	only    string
}

func main() {
	fleet.Main()
	var o options
	flag.DurationVar(&o.length, "for", 10*time.Minute, "how `long`, without the beginning and the end")
	flag.IntVar(&o.workers, "workers", 8, "worker processes")
	flag.IntVar(&o.limit, "limit", 300, "requests per window of the highest tier")
	flag.DurationVar(&o.window, "window", 10*time.Second, "the API's window")
	flag.DurationVar(&o.jitter, "jitter", time.Second, "Policy.Jitter: how long a request may travel; on a busy machine, how long a process may stand")
	flag.Uint64Var(&o.seed, "seed", 0, "of what happens when; 0: another one each time")
	flag.StringVar(&o.only, "only", "", "comma-separated `names` of what may happen; default: everything, which is\n"+strings.Join(names(), ", "))
	flag.Parse()
	if err := o.check(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	redis.SetLogger(silence{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	good, err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if err != nil || !good {
		os.Exit(1)
	}
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func (o *options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("%q: no arguments are wanted", flag.Arg(0))
	case o.length <= 0:
		return fmt.Errorf("-for %v: must be positive", o.length)
	case o.workers < 2:
		return fmt.Errorf("-workers %d: must be 2 or more", o.workers)
	case o.limit < 8*o.workers:
		return fmt.Errorf("-limit %d: must be 8 or more for each worker, so that the lowest tier leaves each a share", o.limit)
	case o.window < 2*time.Second:
		return fmt.Errorf("-window %v: must be 2s or more", o.window)
	case o.jitter <= 0 || o.jitter > o.window/2:
		return fmt.Errorf("-jitter %v: must be positive and at most half of -window", o.jitter)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	known := names()
	for _, name := range o.chosen() {
		if !contains(known, name) {
			return fmt.Errorf("-only %q: must be of %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

func (o *options) chosen() []string {
	if o.only == "" {
		return names()
	}
	return strings.Split(o.only, ",")
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}
