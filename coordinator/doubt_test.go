package coordinator

import (
	"context"
	"fmt"
	"testing"
	"time"
)

var videos = Policy{
	Limit: 600, Headroom: 1, LeaseTTL: 30 * time.Second,
	Endpoints: []Endpoint{{Pattern: "POST /video", Slots: 2, JobTTL: 15 * time.Minute}},
}

// The reply that grants a job's slot is lost: the slot would be taken for as long as a job
// may last.
func TestALostReplyLeaksNoSlotOfAJob(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		one := videos
		one.Endpoints = []Endpoint{{Pattern: "POST /video", Slots: 1, JobTTL: 15 * time.Minute}}
		c, wire := r.workerOnLossyWire("a", one, noOutage(t))
		mustAcquire(t, c, "").Release()
		time.Sleep(15 * time.Second) // between two heartbeats
		wire.loseNext()
		start := time.Now()
		p := mustAcquire(t, c, "POST /video")
		if took := time.Since(start); wire.count() != 1 || took < time.Second || took > 40*time.Second {
			t.Errorf("served %v after %d lost replies, want 40 s at most, and that it had to wait", took, wire.count())
		}
		// The job that this one starts keeps its slot, though there was a doubt.
		p.BindJob("job")
		for range 10 {
			time.Sleep(15 * time.Second)
			if s, err := c.State(context.Background()); err != nil || s.Endpoints[0].InUse != 1 {
				t.Fatalf("state %+v (%v), want the job's slot taken", s.Endpoints[0], err)
			}
		}
		c.JobDone("POST /video", "job")
		mustAcquire(t, c, "POST /video").Release()
		closeAll(t, c)
	})
}

// Jobs that were started before and after, calls whose end is unknown, and calls under way
// keep their slots while the worker has one that it never heard of given back.
func TestADoubtFreesNothingThatWasHeardOf(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := videos
		p.Endpoints = []Endpoint{{Pattern: "POST /video", Slots: 7, JobTTL: 15 * time.Minute}}
		c, wire := r.workerOnLossyWire("a", p, noOutage(t))
		mustAcquire(t, c, "POST /video").BindJob("before")
		mustAcquire(t, c, "POST /video").Keep()
		time.Sleep(15 * time.Second)
		wire.loseNext()
		mustAcquire(t, c, "POST /video").BindJob("after") // the second of two, the first was lost
		mustAcquire(t, c, "POST /video").Keep()
		tried, err := c.TryAcquire(context.Background(), Request{Endpoint: "POST /video"})
		if err != nil {
			t.Fatal(err)
		}
		if s, _ := c.State(context.Background()); s.Endpoints[0].InUse != 6 {
			t.Fatalf("%d slots in use, want 5 and the lost one", s.Endpoints[0].InUse)
		}
		time.Sleep(2 * time.Minute)
		s, err := c.State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 5 {
			t.Errorf("%d slots in use (%v), want the 5 that were heard of: %+v", s.Endpoints[0].InUse, err, s.Endpoints[0].Leases)
		}
		if err := tried.Valid(); err != nil && err != ErrStale {
			t.Errorf("the call under way: %v", err)
		}
		c.mu.Lock()
		if l := c.lanes["POST /video"]; l.doubt != nil {
			t.Error("the doubt does not end")
		}
		c.mu.Unlock()
		tried.Release()
		closeAll(t, c)
	})
}

// What is remembered of grants is bounded. Where not all is remembered, nothing is freed.
func TestWhatIsHeardOfGrantsIsBounded(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", videos)
		l := c.lanes["POST /video"]
		c.mu.Lock()
		for i := range 5 * maxGrantsHeard {
			c.hearLease(&Permit{c: c, lane: l, lease: fmt.Sprint("a:1:", i), counted: time.Now()})
			c.doubt([]ask{{lane: l, after: 1}})
			if len(l.granted) > maxGrantsHeard {
				t.Fatalf("%d grants are remembered", len(l.granted))
			}
			if l.doubt != nil && len(l.granted) < i+1 {
				t.Fatalf("a doubt with %d grants remembered of %d", len(l.granted), i+1)
			}
		}
		c.mu.Unlock()
		closeAll(t, c)
	})
}
