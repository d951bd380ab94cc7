package coordinator

import (
	"context"
	"testing"
	"time"
)

// Each key of an account is deleted by itself, by hand or by a Redis that evicts, while slots
// are held. Only the leases in it are lost with a key of slots: their holders are told with
// their next heartbeat.
func TestASingleKeyThatIsDeletedCostsNoMoreThanItHolds(t *testing.T) {
	const beat = 10 * time.Second
	p := Policy{Limit: 120, Burst: 120, Headroom: 1, Endpoints: []Endpoint{
		{Pattern: chat, Slots: 2}, {Pattern: video, Slots: 1, JobTTL: time.Hour},
	}}
	for key, lost := range map[string]int{
		"account": 0, "window": 0, "queue": 0, "due": 0, "workers": 0, "expected": 0, "policies": 0, "timeline": 0,
		"queue:" + chat: 0, "due:" + chat: 0, "slots:" + chat: 2,
	} {
		t.Run(key, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				workers, _ := r.fleetWith(3, p, Events{})
				acquireMany(workers, "", 3, time.Second)
				time.Sleep(2 * time.Minute)
				held := acquireMany(workers[:1], chat, 2, time.Second)
				mustAcquire(t, workers[0], video).BindJob("job")
				sent := 3 + len(acquireMany(workers, "", 77, time.Second))
				waits := acquireSoon(workers[1], chat) // there is a queue
				time.Sleep(3 * time.Second)
				sent += len(acquireMany(workers, "", 10, time.Second))
				r.mini.Del("fleetlimit:{acme}:" + key)
				sent += len(acquireMany(workers, "", 120, 20*time.Second))
				time.Sleep(beat + time.Second)
				gone := 0
				for _, h := range held {
					if isClosed(h.Lost()) {
						gone++
					}
				}
				if gone != lost {
					t.Errorf("%d leases were lost, want %d", gone, lost)
				}
				if lost == 0 && len(waits) > 0 {
					t.Error("a third slot of two was given")
				}
				if sent > p.Limit {
					t.Errorf("%d requests in a window, limit %d", sent, p.Limit)
				}
				if _, err := workers[2].TryAcquire(context.Background(), Request{Endpoint: video}); err == nil {
					t.Error("the slot of a job that goes on was given")
				}
				for _, h := range held {
					h.Release()
				}
				<-waits
				workers[2].JobDone(video, "job")
				time.Sleep(2*time.Minute + beat)
				for e, want := range map[string]int{chat: 2, video: 1, "": p.Limit - 3} {
					if n := len(acquireMany(workers, e, want, 20*time.Second)); n != want {
						t.Errorf("%d permits for %q when all is over, want %d", n, e, want)
					}
				}
				closeAll(t, workers...)
			})
		})
	}
}
