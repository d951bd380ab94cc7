package fleetsim

import (
	"context"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
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

// StrangerFor is Stranger for a while.
func StrangerFor(at, length time.Duration, share float64) Event {
	return Event{at, func(w *World) {
		stop, err := w.Upstream.StartStranger(mockapi.Stranger{Key: apiKey, Fraction: share})
		w.must(err)
		if err == nil {
			w.at(length, stop)
		}
	}}
}

// StrangerBursts lets somebody else send this share of the limit at once, n times,
// at random moments of the scenario.
func StrangerBursts(share float64, n int) Event {
	return Event{0, func(w *World) {
		rng := w.rand(strangerStream)
		for range n {
			at := time.Duration(rng.Int64N(int64(w.scenario.Length)))
			w.at(at, func() { w.Upstream.Spend(apiKey, int(share*float64(w.Upstream.Stats().Limit))) })
		}
	}}
}

// strangerStream is the stream of randomness of StrangerBursts, outside of those of
// the processes.
const strangerStream = 1 << 63

// Crash ends a process as SIGKILL would, and starts it anew after a while.
func Crash(at time.Duration, process int, restartAfter time.Duration) Event {
	return Event{at, func(w *World) { w.crash(process, restartAfter) }}
}

// Crashes ends one process every so often, each in its turn, and starts it anew
// after a while.
func Crashes(every, restartAfter time.Duration) Event {
	return Event{0, func(w *World) {
		for i := 0; ; i++ {
			if !sleep(w.ctx, every) {
				return
			}
			w.crash(i%w.scenario.Fleet.Processes, restartAfter)
		}
	}}
}

// CrashHolder ends a process that follows a job, and starts it anew after a while.
func CrashHolder(at, restartAfter time.Duration) Event {
	return Event{at, func(w *World) {
		w.mu.Lock()
		holder := -1
		for _, j := range w.jobs {
			if holder < 0 || j.owner < holder {
				holder = j.owner
			}
		}
		w.mu.Unlock()
		if holder < 0 {
			w.t.Errorf("at %v no process holds a job", w.now())
			return
		}
		w.crash(holder, restartAfter)
	}}
}

// RedisAway makes Redis unreachable for a while, for everybody.
func RedisAway(at, length time.Duration) Event {
	return Event{at, func(w *World) {
		w.setRedisAway(true)
		w.at(length, func() { w.setRedisAway(false) })
	}}
}

// CutOff makes Redis unreachable for one process for a while, and for whichever takes
// its place meanwhile.
func CutOff(at, length time.Duration, process int) Event {
	return Event{at, func(w *World) {
		w.cutOff(process, 1)
		w.at(length, func() { w.cutOff(process, -1) })
	}}
}

// RedisFlushed lets Redis forget everything, as a restart without persistence does.
func RedisFlushed(at time.Duration) Event {
	return Event{at, func(w *World) { w.Redis.FlushAll() }}
}

// RedisGoesBack lets Redis forget what it has learned within the last by, as a restart with
// an old dump does, or a failover: all connections break.
func RedisGoesBack(at, by time.Duration) Event {
	by = min(by, at)
	return Event{at - by, func(w *World) {
		load, err := redistest.Dump(context.Background(), w.observer)
		w.must(err)
		w.at(by, func() {
			w.breakRedis(func() { w.must(load()) })
		})
	}}
}

// RestartAPI breaks off all calls, and makes the API unreachable for a while. It
// does not forget what it has counted.
func RestartAPI(at, length time.Duration) Event {
	return Event{at, func(w *World) {
		w.setAPIAway(true)
		w.at(length, func() { w.setAPIAway(false) })
	}}
}

// Pause makes the API answer 429 with this Retry-After until the pause is over.
func Pause(at, retryAfter time.Duration) Event {
	return Event{at, func(w *World) {
		w.must(w.Upstream.Inject(mockapi.Fault{Kind: mockapi.FaultSurprise429, RetryAfter: retryAfter, Hold: true}))
	}}
}

// Unavailable makes the API answer some requests with 503 and Retry-After.
func Unavailable(at time.Duration, requests int, retryAfter time.Duration) Event {
	return Event{at, func(w *World) {
		w.must(w.Upstream.Inject(mockapi.Fault{Kind: mockapi.FaultError, Status: 503, Count: requests, RetryAfter: retryAfter}))
	}}
}
