package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const chat, video = "POST /mave/chat", "POST /video-analyses"

var policy = Policy{
	Limit: 60, Headroom: 1,
	Endpoints: []Endpoint{{Pattern: chat, Slots: 2}, {Pattern: video, Slots: 1, JobTTL: 10 * time.Minute}},
}

// grantTimes lets callers of several workers acquire without end for a while and
// returns when each was admitted.
func grantTimes(t *testing.T, workers []*Coordinator, callers int, length time.Duration, then func(*Permit)) []time.Duration {
	t.Helper()
	var takers []taker
	for _, c := range workers {
		takers = append(takers, func(ctx context.Context) (func(), error) {
			p, err := c.Acquire(ctx, Request{})
			return func() { then(p) }, err
		})
	}
	return takeTimes(takers, callers, length)
}

// A taker waits until it is let in, and returns what to do then.
type taker func(context.Context) (then func(), err error)

// takeTimes lets callers of each taker take without end for a while, and returns when each
// was let in.
func takeTimes(takers []taker, callers int, length time.Duration) []time.Duration {
	ctx, cancel := within(length)
	defer cancel()
	start := time.Now()
	var mu sync.Mutex
	var times []time.Duration
	var wg sync.WaitGroup
	for _, take := range takers {
		for range callers {
			wg.Go(func() {
				for {
					then, err := take(ctx)
					if err != nil {
						return
					}
					mu.Lock()
					times = append(times, time.Since(start))
					mu.Unlock()
					then()
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(times)
	return times
}

// mostWithin returns the largest number of instants in any interval of the length.
func mostWithin(times []time.Duration, length time.Duration) int {
	most := 0
	for i, from := 0, 0; i < len(times); i++ {
		for times[i]-times[from] >= length {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

func closeAll(t *testing.T, workers ...*Coordinator) {
	t.Helper()
	for _, c := range workers {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

func TestIdleFleetMayBurst(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 100, Burst: 40, Headroom: 1})
		start := time.Now()
		for range 40 {
			mustAcquire(t, c, "")
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("a burst of 40 took %v, want no time", took)
		}
		mustAcquire(t, c, "")
		if took := time.Since(start); took < 600*time.Millisecond {
			t.Errorf("number 41 came after %v, want one emission interval of 600 ms", took)
		}
		closeAll(t, c)
	})
}

func TestReleaseWakesAnotherProcess(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", policy), r.worker("b", policy)
		handOver(t, a, b, video, 7350*time.Millisecond)
		closeAll(t, a, b)
	})
}

// handOver has b wait for the only slot, which a holds so long: b must hear of its release.
func handOver(t *testing.T, a, b *Coordinator, endpoint string, held time.Duration) {
	t.Helper()
	first := mustAcquire(t, a, endpoint)
	time.AfterFunc(held, first.Release)
	start := time.Now()
	second := mustAcquire(t, b, endpoint)
	if took := time.Since(start); took != held {
		t.Errorf("the slot changed hands after %v, want %v", took, held)
	}
	second.Release()
}

// crash ends a coordinator as SIGKILL would: nothing is said to Redis.
func crash(c *Coordinator) {
	c.stop()
	c.done.Wait()
}

func TestLostLeaseIsToldToTheHolder(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		p := mustAcquire(t, c, chat)
		ctx, cancel := p.Context(context.Background())
		defer cancel()
		r.mini.ZRem("fleetlimit:{acme}:slots:"+chat, p.lease) // by an operator, say
		select {
		case <-p.Lost():
		case <-time.After(11 * time.Second):
			t.Fatal("Lost is open a heartbeat after the lease has gone")
		}
		<-ctx.Done()
		if err := context.Cause(ctx); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("cause %v, want ErrLeaseLost", err)
		}
		p.Release()
		closeAll(t, c)
	})
}

// With its own share a worker may keep a slot; without, it cannot.
func TestHolderCutOffFromRedisLosesItsLease(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, _ := r.linked("a", policy, Wait)
		p := mustAcquire(t, c, chat)
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		start := time.Now()
		awaitLost(t, p)
		if took := time.Since(start); took > 41*time.Second {
			t.Errorf("told after %v, want a heartbeat after the TTL at the latest", took)
		}
		r.mini.SetError("")
		p.Release()
		closeAll(t, c)
	})
}

// With its own share a worker goes on with the slots that it had, gives up what is beyond
// its part when the leases have ended, and keeps its part for as long as it likes.
func TestHolderCutOffFromRedisKeepsItsPartOfTheSlots(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 2}}}
		a, linkOfA := r.linked("a", p, OwnShare)
		b, linkOfB := r.linked("b", p, OwnShare)
		for _, c := range []*Coordinator{a, b} {
			mustAcquire(t, c, "")
		}
		time.Sleep(15 * time.Second) // each knows of the other: the part of each is one slot
		older := mustAcquire(t, a, chat)
		time.Sleep(time.Second)
		younger := mustAcquire(t, a, chat)
		linkOfA.setCut(true)
		linkOfB.setCut(true)
		start := time.Now()
		awaitLost(t, younger)
		if took := time.Since(start); took < 15*time.Second || took > 30*time.Second {
			t.Errorf("the slot beyond its part was lost after %v, want before the lease's TTL of 30 s has passed since its last renewal", took)
		}
		time.Sleep(5 * time.Minute)
		if isClosed(older.Lost()) {
			t.Error("the slot that is its part was lost as well")
		}
		linkOfA.setCut(false)
		linkOfB.setCut(false)
		time.Sleep(20 * time.Second)
		s, err := b.State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 1 || isClosed(older.Lost()) {
			t.Errorf("slots %+v %v, want the one that was kept", s.Endpoints, err)
		}
		older.Release()
		closeAll(t, a, b)
	})
}

// A process that stood still since the grant must not send on the strength of it.
func TestPermitThatWasNotUsedInTimeIsNotValid(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		slot, budget := mustAcquire(t, c, chat), mustAcquire(t, c, "")
		if slot.Valid() != nil || budget.Valid() != nil {
			t.Fatal("a fresh permit is not valid")
		}
		c.mu.Lock() // as if no heartbeat had run since, and none could now
		slot.renewed = slot.renewed.Add(-31 * time.Second)
		c.mu.Unlock()
		if err := slot.Valid(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("error %v after longer than the lease, want ErrLeaseLost", err)
		}
		awaitLost(t, slot)
		time.Sleep(time.Minute + time.Millisecond)
		if err := budget.Valid(); !errors.Is(err, ErrStale) {
			t.Errorf("error %v a window after the grant, want ErrStale", err)
		}
		closeAll(t, c)
	})
}

// A process that wakes up runs everything at once: Valid may be asked while another goroutine
// has found out that the lease is lost, and has not told the permit yet.
func TestAPermitThatIsAboutToHearOfItsLossIsNotValid(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		p := mustAcquire(t, c, chat)
		c.mu.Lock() // as in expire, and in a heartbeat
		c.unhold(p)
		p.gone = true
		c.mu.Unlock()
		if err := p.Valid(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("error %v, want ErrLeaseLost", err)
		}
		closeAll(t, c)
	})
}

// The cap holds although a worker closes in the middle of calls: what may have been
// started goes on, what was broken off is counted for a moment still.
func TestCloseInTheMiddleOfCalls(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 3}, {Pattern: video, Slots: 2, JobTTL: 10 * time.Minute}}}
		c, other := r.worker("a", p), r.worker("b", p)
		var unsent *Permit
		for _, endpoint := range []string{chat, video} {
			mustAcquire(t, c, endpoint).Sent()
			mustAcquire(t, c, endpoint).Sending() // its last byte is yet to be written
			if endpoint == chat {
				unsent = mustAcquire(t, c, endpoint)
			}
		}
		closeAll(t, c)
		awaitLost(t, unsent)
		s, err := other.State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 2 || s.Endpoints[1].InUse != 2 {
			t.Fatalf("state %+v %v right after Close, want two calls and two jobs", s, err)
		}
		time.Sleep(2 * time.Second)
		if s, _ = other.State(context.Background()); s.Endpoints[0].InUse != 0 || s.Endpoints[1].InUse != 2 {
			t.Errorf("%d calls and %d jobs two seconds later, want 0 and 2", s.Endpoints[0].InUse, s.Endpoints[1].InUse)
		}
		closeAll(t, other)
	})
}

func TestReleasingTwiceOrForAnotherChangesNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", policy), r.worker("b", policy)
		p, q := mustAcquire(t, a, chat), mustAcquire(t, b, chat)
		p.Release()
		p.Release()
		thief := b.newPermit(b.lanes[chat], &admission{at: q.admitted, last: q.seq}, q.seq, time.Now(), time.Now())
		thief.lease = strings.Replace(q.lease, "b:", "a:", 1)
		thief.Release()
		synctest.Wait()
		s, err := a.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if s.Endpoints[0].InUse != 1 || s.Endpoints[0].Leases[0].Worker != "b" {
			t.Errorf("state %+v, want one slot held by b", s.Endpoints[0])
		}
		closeAll(t, a, b)
	})
}

func TestFirst429PausesTheFleetAndIsOneStrike(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1}
		a, b := r.worker("a", p), r.worker("b", p)
		var volley []*Permit
		for range 10 {
			volley = append(volley, mustAcquire(t, a, ""), mustAcquire(t, b, ""))
		}
		f := NoFeedback
		f.Status, f.RetryAfter = 429, 20*time.Second
		for _, permit := range volley {
			permit.Report(f)
		}
		synctest.Wait()
		s, err := a.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if s.Backoff == nil || s.Backoff.Strikes != 1 || s.Backoff.Left < 20*time.Second || s.Backoff.Left > 21*time.Second {
			t.Fatalf("backoff %+v, want one strike and Retry-After of 20 s with at most 1 s of jitter", s.Backoff)
		}
		if ttl := r.mini.TTL("fleetlimit:{acme}:backoff"); ttl < 20*time.Second || ttl > 22*time.Second {
			t.Errorf("TTL of the pause %v, want its length", ttl)
		}
		times := grantTimes(t, []*Coordinator{a, b}, 10, 30*time.Second, func(permit *Permit) {
			ok := NoFeedback
			ok.Status = 200
			permit.Report(ok)
		})
		closeAll(t, a, b)
		if len(times) == 0 || times[0] < 20*time.Second {
			t.Fatalf("admissions %v, want none in the pause", times)
		}
		if n := mostWithin(times, time.Second); n > 12 {
			t.Errorf("%d admissions within a second after the pause, want the pace of 10 per second", n)
		}
	})
}

func TestStrikesDoubleThePauseAndSuccessClearsThem(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 600, Headroom: 1})
		refuse, ok := NoFeedback, NoFeedback
		refuse.Status, ok.Status = 429, 200
		for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			mustAcquire(t, c, "").Report(refuse)
			synctest.Wait()
			s, _ := c.State(context.Background())
			if s.Backoff == nil || s.Backoff.Left < want || s.Backoff.Left > want+want/10+time.Millisecond {
				t.Errorf("pause %+v, want %v and up to a tenth more", s.Backoff, want)
			}
		}
		mustAcquire(t, c, "").Report(ok)
		mustAcquire(t, c, "").Report(refuse)
		synctest.Wait()
		if s, _ := c.State(context.Background()); s.Backoff == nil || s.Backoff.Strikes != 1 {
			t.Errorf("backoff %+v after a success, want one strike", s.Backoff)
		}
		closeAll(t, c)
	})
}

func TestCapPushbackPausesTheEndpointAlone(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		p := mustAcquire(t, c, chat)
		p.Report(Feedback{Status: 429, Limit: 60, Remaining: 30, Reset: -1, RetryAfter: 5 * time.Second})
		p.Release()
		synctest.Wait()
		start := time.Now()
		mustAcquire(t, c, "")
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("a request without slot waited %v for a pause of %s", took, chat)
		}
		mustAcquire(t, c, chat).Release()
		if took := time.Since(start); took < 5*time.Second {
			t.Errorf("%s was admitted after %v of a pause of 5 s", chat, took)
		}
		closeAll(t, c)
	})
}

func TestStrangersOnTheKeyAreSeen(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 100, Headroom: 1})
		first, second := mustAcquire(t, c, ""), mustAcquire(t, c, "")
		second.Report(Feedback{Status: 200, Limit: 100, Remaining: 68, Reset: -1, RetryAfter: -1})
		first.Report(Feedback{Status: 200, Limit: 100, Remaining: 99, Reset: -1, RetryAfter: -1})
		synctest.Wait()
		s, err := c.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if s.Foreign != 30 {
			t.Errorf("foreign %d, want 30: the youngest permit's observation", s.Foreign)
		}
		time.Sleep(61 * time.Second)
		if s, _ = c.State(context.Background()); s.Foreign != 0 {
			t.Errorf("foreign %d a window later, want 0", s.Foreign)
		}
		closeAll(t, c)
	})
}

func TestTheFleetFollowsTheReportedTier(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1}
		a, b := r.worker("a", p), r.worker("b", p)
		mustAcquire(t, a, "").Report(Feedback{Status: 200, Limit: 120, Remaining: 119, Reset: -1, RetryAfter: -1})
		synctest.Wait()
		if s, _ := b.State(context.Background()); s.Limit != 120 || s.Reported != 120 {
			t.Errorf("b sees %+v, want the reported limit of 120", s)
		}
		times := grantTimes(t, []*Coordinator{b}, 40, 2*time.Minute, func(*Permit) { time.Sleep(time.Second) })
		closeAll(t, a, b)
		if most := mostWithin(times, time.Minute); most > 120 {
			t.Errorf("%d permits in a window of 120", most)
		}
	})
}

func TestDeadlineThatCannotBeMetFailsAtOnce(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 6, Burst: 1, Headroom: 1})
		mustAcquire(t, c, "")
		ctx, cancel := within(3 * time.Second)
		defer cancel()
		start := time.Now()
		_, err := c.Acquire(ctx, Request{})
		var wait *WaitError
		if !errors.As(err, &wait) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v, want a WaitError that is an exceeded deadline", err)
		}
		if wait.Gate != GatePace || wait.Wait < 9*time.Second || time.Since(start) > time.Second {
			t.Errorf("after %v: %v, want at once, gate pace, 10 s", time.Since(start), err)
		}
		closeAll(t, c)
	})
}

// Who is not the first in a queue is told to come a little later than foreseen. That is
// no reason to turn a caller away whom the foreseen time would serve.
func TestACallerWhoseTimeWillJustDoIsNotTurnedAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Burst: 1, Headroom: 1}
		first, second := r.worker("first", p), r.worker("second", p)
		mustAcquire(t, first, "")
		var wg sync.WaitGroup
		wg.Go(func() { mustAcquire(t, first, "") }) // after one emission interval of 1 s
		synctest.Wait()
		ctx, cancel := within(2100 * time.Millisecond)
		defer cancel()
		if _, err := second.Acquire(ctx, Request{}); err != nil {
			t.Errorf("with 2.1 s for a wait of 2 s: %v", err)
		}
		wg.Wait()
		closeAll(t, first, second)
	})
}

func TestTryAcquireNeverWaits(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		start := time.Now()
		if _, err := c.TryAcquire(context.Background(), Request{Endpoint: video}); err != nil {
			t.Fatal(err)
		}
		_, err := c.TryAcquire(context.Background(), Request{Endpoint: video})
		var wait *WaitError
		if !errors.As(err, &wait) || wait.Gate != GateSlots || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want a WaitError at the gate slots", err)
		}
		if _, err := c.TryAcquire(context.Background(), Request{Endpoint: "POST /nowhere"}); !errors.Is(err, ErrUnknownEndpoint) {
			t.Errorf("error %v, want ErrUnknownEndpoint", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
		closeAll(t, c)
	})
}

func TestJobKeepsItsSlotBeyondTheWorker(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		starter, other := r.worker("starter", policy), r.worker("other", policy)
		mustAcquire(t, starter, video).BindJob("va_1")
		synctest.Wait()
		crash(starter)
		time.Sleep(5 * time.Minute)
		if _, err := other.TryAcquire(context.Background(), Request{Endpoint: video}); err == nil {
			t.Fatal("the slot of a running job was given away")
		}
		other.JobSeen(video, "va_1")
		time.Sleep(8 * time.Minute) // longer than the TTL since the start, not since it was seen
		if _, err := other.TryAcquire(context.Background(), Request{Endpoint: video}); err == nil {
			t.Fatal("the slot of a job that was seen alive was given away")
		}
		other.JobDone(video, "va_1")
		other.JobDone(video, "va_1")
		start := time.Now()
		mustAcquire(t, other, video).Release()
		if took := time.Since(start); took != 0 {
			t.Errorf("the slot came back %v after the job was seen done", took)
		}
		closeAll(t, other)
	})
}

func TestUnsentRequestGivesBudgetBack(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 10, Burst: 10, Headroom: 1, Endpoints: policy.Endpoints})
		for range 50 {
			mustAcquire(t, c, video).Return()
		}
		synctest.Wait()
		s, err := c.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if s.Used != 0 || s.Endpoints[1].InUse != 0 {
			t.Errorf("used %d, slots %d after everything was returned, want none", s.Used, s.Endpoints[1].InUse)
		}
		closeAll(t, c)
	})
}

func TestCancelledCallersLoseNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		a, b := r.worker("a", policy), r.worker("b", policy)
		held := mustAcquire(t, a, video)
		for range 20 {
			ctx, cancel := within(50 * time.Millisecond)
			if _, err := b.Acquire(ctx, Request{Endpoint: video}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want an exceeded deadline", err)
			}
			cancel()
		}
		synctest.Wait()
		s, _ := a.State(context.Background())
		if s.Endpoints[1].Waiting != 0 || s.Queued != 0 {
			t.Errorf("%d and %d places are left of callers that have gone", s.Endpoints[1].Waiting, s.Queued)
		}
		held.Release()
		mustAcquire(t, a, video).Release()
		closeAll(t, a, b)
	})
}

func TestInteractiveOvertakesBatchOfTheWholeFleet(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Burst: 1, Headroom: 1}
		a, b := r.worker("a", p), r.worker("b", p)
		ctx, cancel := within(10 * time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { a.Acquire(ctx, Request{Priority: Batch}) })
		}
		time.Sleep(5 * time.Second)
		start := time.Now()
		if _, err := b.Acquire(ctx, Request{Priority: Interactive}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("interactive waited %v behind batch callers, want the next permit", took)
		}
		wg.Wait()
		closeAll(t, a, b)
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		held := mustAcquire(t, c, video)
		failed := make(chan error)
		go func() {
			_, err := c.Acquire(context.Background(), Request{Endpoint: video})
			failed <- err
		}()
		synctest.Wait()
		go closeAll(t, c)
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Errorf("waiting caller got %v, want ErrClosed", err)
		}
		closeAll(t, c)
		awaitLost(t, held)
		if _, err := c.Acquire(context.Background(), Request{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Acquire after Close: %v", err)
		}
		for _, key := range []string{"slots:" + video, "queue:" + video, "workers"} {
			if r.mini.Exists("fleetlimit:{acme}:" + key) {
				t.Errorf("key %s is left", key)
			}
		}
	})
}

func TestIdleAccountLeavesNothing_Bottleneck115(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		for i := range 200 {
			c := r.worker(fmt.Sprint("w", i), policy)
			mustAcquire(t, c, "")
			p, err := c.TryAcquire(context.Background(), Request{Endpoint: chat})
			if err == nil {
				p.Report(Feedback{Status: 429, Limit: 60, Remaining: 9, Reset: -1, RetryAfter: time.Second})
			}
			synctest.Wait()
			crash(c)
			if ttls := r.mini.Keys(); len(ttls) > 0 {
				for _, key := range ttls {
					if r.mini.TTL(key) <= 0 {
						t.Fatalf("key %s has no TTL", key)
					}
				}
			}
		}
		time.Sleep(20 * time.Minute)
		if left := r.mini.Keys(); len(left) > 0 {
			t.Errorf("keys left: %v", left)
		}
	})
}

func TestWaitingCallersAreServedWhenRedisIsBack(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, _ := r.linked("a", policy, Wait)
		p := mustAcquire(t, c, video)
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		p.Release()
		ctx, cancel := within(time.Second)
		_, err := c.Acquire(ctx, Request{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "LOADING") {
			t.Errorf("error %v, want an exceeded deadline and what Redis said", err)
		}
		time.AfterFunc(10*time.Second, func() { r.mini.SetError("") })
		start := time.Now()
		mustAcquire(t, c, video)
		if took := time.Since(start); took > 14*time.Second {
			t.Errorf("served %v after the outage began, want at most 4 s after its end", took)
		}
		closeAll(t, c)
	})
}

func TestRefusalByRedisIsToldAtOnce(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		r.mini.Set("fleetlimit:{acme}:window", "garbage")
		r.mini.Set("fleetlimit:{acme}:account", "garbage")
		_, err := c.Acquire(context.Background(), Request{})
		if err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
			t.Errorf("error %v, want WRONGTYPE", err)
		}
		r.mini.FlushAll()
		r.mini.Set("fleetlimit:{acme}:slots:"+chat, "garbage")
		_, err = c.Acquire(context.Background(), Request{Endpoint: chat})
		var bad *KeyError
		if !errors.As(err, &bad) || bad.Key != "fleetlimit:{acme}:slots:"+chat || bad.Type != "string" || bad.Want != "zset" {
			t.Errorf("error %v, want one that names the key", err)
		}
		mustAcquire(t, c, "")
		r.mini.FlushAll()
		mustAcquire(t, c, "")
		closeAll(t, c)
	})
}

// The user's rights, or its password, are taken away for a while: that is an answer, and no
// outage. Callers hear it at once, and all goes on when they are given back.
func TestRightsThatAreTakenAwayAreToldAtOnce(t *testing.T) {
	for _, answer := range []string{
		"NOPERM User fleetlimit has no permissions to run the 'evalsha' command",
		"NOAUTH Authentication required.", "WRONGPASS invalid username-password pair or user is disabled.",
	} {
		inVirtualTime(t, func(t *testing.T, r *rig) {
			c := r.workerWith("a", Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}, noOutage(t))
			held := mustAcquire(t, c, chat)
			time.Sleep(time.Second)
			r.mini.SetError(answer)
			begun := time.Now()
			for range 3 {
				_, err := c.Acquire(t.Context(), Request{})
				if err == nil || !strings.Contains(err.Error(), answer) {
					t.Errorf("error %v, want what Redis said", err)
				}
			}
			if took := time.Since(begun); took > 0 {
				t.Errorf("the refusals took %v", took)
			}
			held.Release()
			time.Sleep(15 * time.Second) // a heartbeat is refused as well
			r.mini.SetError("")
			mustAcquire(t, c, "").Release()
			time.Sleep(lastRetry)
			if p, err := c.TryAcquire(t.Context(), Request{Endpoint: chat}); err != nil {
				t.Errorf("the slot that was given back meanwhile: %v", err)
			} else {
				p.Release()
			}
			closeAll(t, c)
		})
	}
}

func TestClockSetBackStallsForOneWindowAtMost(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 60, Headroom: 1})
		grantTimes(t, []*Coordinator{c}, 40, 90*time.Second, func(*Permit) { time.Sleep(time.Second) })
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				r.mini.SetTime(time.Now().Add(-time.Hour))
				select {
				case <-time.After(50 * time.Millisecond):
				case <-stop:
					return
				}
			}
		}()
		start := time.Now()
		for range 30 {
			mustAcquire(t, c, "")
		}
		if took := time.Since(start); took > 100*time.Second {
			t.Errorf("30 permits took %v after the clock was set back by an hour", took)
		}
		close(stop)
		<-stopped
		closeAll(t, c)
	})
}

func TestLateAndRepeatedSendsAreCounted(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 10, Burst: 10, Headroom: 1})
		used := func() int {
			synctest.Wait()
			s, err := c.State(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return s.Used
		}
		prompt, late := mustAcquire(t, c, ""), mustAcquire(t, c, "")
		prompt.Sent()
		time.Sleep(30 * time.Second)
		late.Sent()
		if n := used(); n != 2 {
			t.Errorf("%d used, want 2", n)
		}
		time.Sleep(31 * time.Second)
		if n := used(); n != 1 {
			t.Errorf("%d used a window after the first, want 1: the late one counts from when it was sent", n)
		}
		late.Sent()
		if n := used(); n != 2 {
			t.Errorf("%d used, want 2: net/http has repeated a request", n)
		}
		closeAll(t, c)
	})
}

// A call that is about to be sent when the worker closes, and has no connection yet, has
// started no job; it may still be sent, so its slot comes back a second later.
func TestCloseBeforeAConnectionIsMadeCostsAJobsSlotASecond(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: video, Slots: 1, JobTTL: time.Hour}}}
		c, other := r.worker("a", p), r.worker("b", p)
		start := mustAcquire(t, c, video)
		if err := start.Valid(); err != nil {
			t.Fatal(err)
		}
		closeAll(t, c)
		start.Return() // the connection was never made
		closed := time.Now()
		mustAcquire(t, other, video).Release()
		if took := time.Since(closed); took < brokenOff || took > 2*time.Second {
			t.Errorf("the slot came back after %v, want %v", took, brokenOff)
		}
		closeAll(t, other)
	})
}
