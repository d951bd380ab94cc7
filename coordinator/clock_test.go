package coordinator

import (
	"testing"
	"time"
)

// stepClock sets the clock of Redis forward, or back, and lets it go on from there.
func (r *rig) stepClock(by time.Duration) (stop func()) {
	ended, stopped := make(chan struct{}), make(chan struct{})
	r.mini.SetTime(time.Now().Add(by))
	go func() {
		defer close(stopped)
		for {
			select {
			case <-time.After(10 * time.Millisecond):
				r.mini.SetTime(time.Now().Add(by))
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-stopped }
}

// A clock that is set forward makes what was sent look older: so many requests too many are
// admitted as leave the window thereby, and not one more. If it skips the life of the
// account's key, Redis has forgotten the account, which is noticed.
func TestAClockSetForwardForgetsNoMoreThanItSkips(t *testing.T) {
	for step, forgotten := range map[time.Duration]int{
		900 * time.Millisecond: 0, 10 * time.Second: 30, 25 * time.Second: 30, 2 * time.Minute: 60, time.Hour: 0, 24 * time.Hour: 0,
	} {
		t.Run(step.String(), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				const limit = 60
				workers, _ := r.fleetWith(3, Policy{Limit: limit, Burst: limit, Headroom: 1}, Events{})
				acquireMany(workers, "", 3, time.Second)
				time.Sleep(2 * time.Minute)
				sent := len(acquireMany(workers, "", 30, time.Second))
				time.Sleep(40 * time.Second)
				sent += len(acquireMany(workers, "", 30, time.Second))
				if sent != limit {
					t.Fatalf("%d requests, want all of the limit", sent)
				}
				stop := r.stepClock(step)
				sent += len(acquireMany(workers, "", 2*limit, 15*time.Second))
				if sent > limit+forgotten {
					t.Errorf("%d requests in a window, want %d more than the limit, %d, at most", sent, forgotten, limit)
				}
				time.Sleep(2 * time.Minute)
				if n := len(acquireMany(workers, "", limit, 90*time.Second)); n != limit {
					t.Errorf("%d requests when all is over, want %d", n, limit)
				}
				closeAll(t, workers...)
				stop()
			})
		})
	}
}
