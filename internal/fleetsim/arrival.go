package fleetsim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Arrival is a pattern in which the callers of one process call, until ctx ends.
// It returns when all its calls have ended.
type Arrival interface {
	play(ctx context.Context, callers int, rng *rand.Rand, call func(context.Context))
}

// Saturated callers call again as soon as they have been answered.
type Saturated struct{}

func (Saturated) play(ctx context.Context, callers int, _ *rand.Rand, call func(context.Context)) {
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				call(ctx)
			}
		})
	}
	wg.Wait()
}

// Bursts is Size calls per process at once, every Every, the first at once.
type Bursts struct {
	Size  int
	Every time.Duration
}

func (b Bursts) play(ctx context.Context, _ int, _ *rand.Rand, call func(context.Context)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for range b.Size {
			wg.Go(func() { call(ctx) })
		}
		if !sleep(ctx, b.Every) {
			return
		}
	}
}

// Poisson is calls at random, independent of each other, with this many per
// second and process on average.
type Poisson struct{ PerSecond float64 }

func (p Poisson) play(ctx context.Context, _ int, rng *rand.Rand, call func(context.Context)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for sleep(ctx, time.Duration(rng.ExpFloat64()/p.PerSecond*float64(time.Second))) {
		wg.Go(func() { call(ctx) })
	}
}

// OnOff is Saturated for On, then nothing for Off, and so on.
type OnOff struct{ On, Off time.Duration }

func (o OnOff) play(ctx context.Context, callers int, rng *rand.Rand, call func(context.Context)) {
	for ctx.Err() == nil {
		on, cancel := context.WithTimeout(ctx, o.On)
		Saturated{}.play(on, callers, rng, call)
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
