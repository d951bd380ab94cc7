package coordinator

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// Callers come, give up while they wait or while their grant is on its way, call and
// go: nobody is lost, and no budget and no slot with them.
func TestTenThousandCallersComeAndGo(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 1_000_000, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 100}}}
		workers := []*Coordinator{r.worker("a", p), r.worker("b", p)}
		var (
			callers      sync.WaitGroup
			sent, gaveUp atomic.Int64
			inside, most atomic.Int64
		)
		for i := range 10_000 {
			time.Sleep(rand.N(2 * time.Millisecond))
			callers.Go(func() {
				ctx, cancel := context.WithTimeoutCause(context.Background(), rand.N(2*time.Second), errors.New("no more time"))
				defer cancel()
				permit, err := workers[i%2].Acquire(ctx, Request{Endpoint: chat, Priority: Priority(i%3 - 1)})
				if err != nil {
					gaveUp.Add(1)
					return
				}
				sent.Add(1)
				for now := inside.Add(1); ; {
					if seen := most.Load(); now <= seen || most.CompareAndSwap(seen, now) {
						break
					}
				}
				time.Sleep(rand.N(500 * time.Millisecond))
				inside.Add(-1)
				permit.Release()
			})
		}
		callers.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		s, err := workers[0].State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if int64(s.Used) != sent.Load() || s.Endpoints[0].InUse != 0 || s.Endpoints[0].Waiting+s.Queued != 0 {
			t.Errorf("used %d of which %d were sent, %d slots in use, %d places waiting; want all sent, and none left",
				s.Used, sent.Load(), s.Endpoints[0].InUse, s.Endpoints[0].Waiting+s.Queued)
		}
		if sent.Load() == 0 || gaveUp.Load() == 0 || most.Load() < 90 || most.Load() > 100 {
			t.Errorf("%d sent, %d gave up, %d at once of 100: the test tries too little", sent.Load(), gaveUp.Load(), most.Load())
		}
		closeAll(t, workers...)
	})
}

// A process with one caller gets as much as one with a hundred, while both wait.
func TestOneCallerGetsAsMuchAsAHundredElsewhere(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 120, Burst: 1, Headroom: 1}
		one, many := r.worker("one", p), r.worker("many", p)
		ctx, stop := context.WithCancel(context.Background())
		var callers sync.WaitGroup
		var granted [2]atomic.Int64
		loop := func(c *Coordinator, count *atomic.Int64) {
			callers.Go(func() {
				for {
					if _, err := c.Acquire(ctx, Request{}); err != nil {
						return
					}
					count.Add(1)
				}
			})
		}
		loop(one, &granted[0])
		for range 100 {
			loop(many, &granted[1])
		}
		time.Sleep(10 * time.Minute)
		stop()
		callers.Wait()
		a, b := granted[0].Load(), granted[1].Load()
		if all := a + b; all < 1180 || a < all*49/100 || a > all*51/100 {
			t.Errorf("one caller got %d and a hundred got %d of 1200 in ten minutes, want equal shares of all", a, b)
		}
		closeAll(t, one, many)
	})
}

// However many interactive callers there are, a batch caller is served before those
// who come more than two minutes after it.
func TestBatchIsNeverStarved(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Burst: 1, Headroom: 1}
		crowd, poor := r.worker("crowd", p), r.worker("poor", p)
		ctx, stop := context.WithCancel(context.Background())
		var callers sync.WaitGroup
		for range 300 { // five minutes of work wait at any time
			callers.Go(func() {
				for {
					if _, err := crowd.Acquire(ctx, Request{Priority: Interactive}); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(2 * time.Minute)
		for range 3 {
			permit, err := poor.Acquire(ctx, Request{Priority: Batch})
			if err != nil {
				t.Fatal(err)
			}
			if waited, most := permit.Waited(), 2*headStart+5*time.Second; waited > most {
				t.Errorf("a batch caller waited %v, want %v at most", waited, most)
			}
		}
		stop()
		callers.Wait()
		closeAll(t, crowd, poor)
	})
}

// countCommands counts the calls of scripts.
type countCommands struct {
	commandsOnly
	n atomic.Int64
}

func (c *countCommands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

// A worker that waits sleeps until its turn: however many wait, an admission costs
// no more than three commands, heartbeats included.
func TestWaitingWorkersCostThreeCommandsPerAdmission(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const crowd = 200
		commands := new(countCommands)
		r.rdb.AddHook(commands)
		p := Policy{Limit: 1200, Burst: 1, Headroom: 1}
		ctx, stop := context.WithCancel(context.Background())
		var (
			callers sync.WaitGroup
			workers []*Coordinator
			granted atomic.Int64
		)
		for i := range crowd {
			c := r.worker("worker-"+formatInt(int64(i)), p)
			workers = append(workers, c)
			callers.Go(func() {
				for {
					if _, err := c.Acquire(ctx, Request{}); err != nil {
						return
					}
					granted.Add(1)
				}
			})
		}
		time.Sleep(35 * time.Second)
		before, first := commands.n.Load(), granted.Load()
		time.Sleep(crowd * beatPerWorker) // a heartbeat of each
		each := float64(commands.n.Load()-before) / float64(granted.Load()-first)
		if each > 3 || granted.Load()-first < 790 {
			t.Errorf("%d admissions in 40 s, at %.2f commands each; want 800 at 3 or fewer", granted.Load()-first, each)
		}
		stop()
		callers.Wait()
		closeAll(t, workers...)
	})
}

// Who starts in a crowd hears late how large it is: its promise must outlast the next count,
// or each of them beats once more.
func TestAHeartbeatPromisesMoreWhileTheFleetGrows(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 1200, Headroom: 1})
		tick := c.policy.LeaseTTL / 3
		fleet := 0
		grow := func(n int) {
			for range n {
				fleet++
				alive := float64(time.Now().Add(time.Hour).UnixMilli())
				if err := r.rdb.ZAdd(t.Context(), c.keys.workers(), redis.Z{Score: alive, Member: "other-" + formatInt(int64(fleet))}).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		promised := func() time.Duration {
			until, err := r.rdb.ZScore(t.Context(), c.keys.workers(), "a").Result()
			if err != nil {
				t.Fatal(err)
			}
			return time.Until(time.UnixMilli(int64(until))).Round(time.Second)
		}
		mustAcquire(t, c, "")
		synctest.Wait()
		if p := promised(); p != 3*tick {
			t.Errorf("alone it is alive for %v, want %v", p, 3*tick)
		}
		grow(99)
		time.Sleep(tick + time.Second) // it hears of 100
		grow(100)
		time.Sleep(tick) // it promises for 100, and hears of 200
		known := 100 * beatPerWorker
		if p := promised(); p != 2*3*known-time.Second {
			t.Errorf("while the fleet grows it is alive for %v, want %v less a second", p, 2*3*known)
		}
		time.Sleep(2*known - 2*time.Second)
		if p := promised(); p != 2*2*known+time.Second {
			t.Errorf("it is alive for %v, want %v: no heartbeat before the promised one", p, 2*2*known+time.Second)
		}
		time.Sleep(tick)
		if p := promised(); p > 3*2*known || p < 3*2*known-tick {
			t.Errorf("when the fleet has grown it is alive for %v, want nearly %v", p, 3*2*known)
		}
	})
}
