package fleetsim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Arrival is a pattern in which the callers of one process call, until ctx ends.
// play returns when all its calls have ended.
type Arrival interface {
	play(ctx context.Context, c crew)
}

// crew is the callers of one process.
type crew struct {
	callers            int
	process, processes int
	rng                *rand.Rand
	call               func(context.Context)
}

// Saturated callers call again as soon as they have been answered.
type Saturated struct{}

func (Saturated) play(ctx context.Context, c crew) { c.saturate(ctx, ctx) }

// saturate keeps all callers calling while ctx says so; calls end with whole.
func (c crew) saturate(ctx, whole context.Context) {
	var wg sync.WaitGroup
	for range c.callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				c.call(whole)
			}
		})
	}
	wg.Wait()
}

// Bursts is Size calls of the whole fleet at once, every Every, the first at once;
// the processes share them evenly.
type Bursts struct {
	Size  int
	Every time.Duration
}

func (b Bursts) play(ctx context.Context, c crew) {
	var wg sync.WaitGroup
	defer wg.Wait()
	mine := b.Size * (c.process + 1) / c.processes
	mine -= b.Size * c.process / c.processes
	for {
		for range mine {
			wg.Go(func() { c.call(ctx) })
		}
		if !sleep(ctx, b.Every) {
			return
		}
	}
}

// Poisson is calls at random, independent of each other, with this many per second
// and process on average, each by a caller of its own.
type Poisson struct{ PerSecond float64 }

func (p Poisson) play(ctx context.Context, c crew) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for sleep(ctx, time.Duration(c.rng.ExpFloat64()/p.PerSecond*float64(time.Second))) {
		wg.Go(func() { c.call(ctx) })
	}
}

// OnOff is Saturated for On, then no new calls for Off, and so on.
type OnOff struct{ On, Off time.Duration }

func (o OnOff) play(ctx context.Context, c crew) {
	for ctx.Err() == nil {
		on, cancel := context.WithCancel(ctx)
		time.AfterFunc(o.On, cancel)
		c.saturate(on, ctx)
		cancel()
		sleep(ctx, o.Off)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
