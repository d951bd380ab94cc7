package mockapi

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
)

// Stranger is somebody else who uses the same API key.
type Stranger struct {
	// Key is the API key. Default: the first key that the API sees, also
	// before it has seen it.
	Key string
	// Fraction is the stranger's mean rate as a share of the limit, with
	// Poisson arrivals. The rate follows the limit when the tier changes.
	Fraction float64
	// Burst is how many requests come at once every Every; the first burst
	// comes after Every. Default of Every: the window.
	Burst int
	Every time.Duration
}

// StartStranger lets a stranger spend until stop is called or the API closed.
// Its requests pass the same limit, but are not the fleet's: see Stats. Either
// Fraction or Burst must be set. stop waits for the end and is idempotent.
func (a *API) StartStranger(s Stranger) (stop func(), err error) {
	setDefault(&s.Every, a.cfg.Window)
	switch {
	case !(s.Fraction >= 0) || math.IsInf(s.Fraction, 0):
		return nil, fmt.Errorf("mockapi: Stranger.Fraction %v is not a share", s.Fraction)
	case s.Burst < 0:
		return nil, fmt.Errorf("mockapi: Stranger.Burst %d is negative", s.Burst)
	case (s.Fraction > 0) == (s.Burst > 0):
		return nil, fmt.Errorf("mockapi: Stranger needs either Fraction or Burst")
	case s.Every < 0:
		return nil, fmt.Errorf("mockapi: Stranger.Every %v is negative", s.Every)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed() {
		cancel()
		return nil, fmt.Errorf("mockapi: the API is closed")
	}
	a.strangers.Add(1)
	running.Go(func() {
		defer a.strangers.Done()
		defer cancel()
		for a.wait(ctx, a.Since()+a.pauseOfStranger(s)) {
			a.Spend(s.Key, max(1, s.Burst))
		}
	})
	return func() { cancel(); running.Wait() }, nil
}

// pauseOfStranger draws the time to the stranger's next request or burst.
func (a *API) pauseOfStranger(s Stranger) time.Duration {
	if s.Burst > 0 {
		return s.Every
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	mean := float64(a.cfg.Window) / (s.Fraction * float64(a.limit))
	// At least a nanosecond, so that time advances.
	return time.Duration(max(1, min(mean*a.rng.ExpFloat64(), math.MaxInt64/4)))
}

// Spend makes n requests at once as a stranger on a key ("": the first that
// the API sees) and returns how many were accepted.
func (a *API) Spend(key string, n int) (accepted int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.Since()
	w := &a.accountOf(key, now).window
	n = max(0, n)
	for range n {
		switch {
		case w.used() < a.limit:
			w.add(now, stranger, a.limit)
			accepted++
		case a.cfg.CountRejected:
			w.add(now, strangerRejected, a.limit)
		}
	}
	a.timeline.advance(now, a.capacity()).stranger += float32(accepted)
	a.count.strangerAccepted += int64(accepted)
	a.count.strangerRejected += int64(n - accepted)
	return accepted
}

// OccupySlot takes a slot of an endpoint as a stranger would, on a key ("": the
// first that the API sees), until release is called, which is idempotent. It
// takes no budget. ok is false if the endpoint has no slot free, or no cap.
func (a *API) OccupySlot(key, pattern string) (release func(), ok bool) {
	e, ok := endpointOf(pattern)
	if !ok {
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.Since()
	slots := &a.accountOf(key, now).slots[e]
	slots.expire(now)
	if slots.size == 0 || slots.full() {
		return nil, false
	}
	h := hold{id: a.nextID(), until: never, alien: true}
	slots.take(h)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		slots.release(h.id)
	}, true
}
