package fleetsim

import (
	"math/rand/v2"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Event is something that happens at a time after the start.
type Event struct {
	At time.Duration
	Do func(*World)
}

// SetLimit changes the tier.
func SetLimit(at time.Duration, limit int) Event {
	return Event{at, func(w *World) { w.must(w.Upstream.SetLimit(limit)) }}
}

// Stranger lets somebody else use this share of the key, as a Poisson process.
func Stranger(at time.Duration, share float64) Event {
	return Event{at, func(w *World) {
		_, err := w.Upstream.StartStranger(mockapi.Stranger{Key: apiKey, Fraction: share})
		w.must(err)
	}}
}

// StrangerBursts lets somebody else send this share of the limit at once, n times,
// at random moments of the scenario.
func StrangerBursts(share float64, n int) Event {
	return Event{0, func(w *World) {
		rng := w.rand(1000)
		for range n {
			at := time.Duration(rng.Int64N(int64(w.scenario.Length)))
			w.at(at, func() { w.Upstream.Spend(apiKey, int(share*float64(w.Upstream.Stats().Limit))) })
		}
	}}
}

// Crash ends a process as SIGKILL would, and starts it anew after a while.
func Crash(at time.Duration, process int, restartAfter time.Duration) Event {
	return Event{at, func(w *World) { w.crash(process, restartAfter) }}
}

// RedisAway makes Redis unreachable for a while.
func RedisAway(at, length time.Duration) Event {
	return Event{at, func(w *World) {
		w.setRedisAway(true)
		w.at(length, func() { w.setRedisAway(false) })
	}}
}

// Surprise makes the API answer 429 with this Retry-After until the pause is over.
func Surprise(at, retryAfter time.Duration) Event {
	return Event{at, func(w *World) {
		w.must(w.Upstream.Inject(mockapi.Fault{Kind: mockapi.FaultSurprise429, RetryAfter: retryAfter, Hold: true}))
	}}
}

func (w *World) rand(stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.scenario.Seed, stream))
}
