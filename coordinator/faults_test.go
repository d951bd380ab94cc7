package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// A logbook writes down when the workers of a fleet went on alone, and when they were back.
type logbook struct {
	mu          sync.Mutex
	alone, back []time.Time
	forgot      []time.Time // when they found that Redis had forgotten the account
	errs        []error     // that callers got
}

func (l *logbook) note(times *[]time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*times = append(*times, time.Now())
}

func (l *logbook) count(times *[]time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(*times)
}

func (l *logbook) events() Events {
	return Events{
		Degraded:   func(Degradation) { l.note(&l.alone) },
		Recovered:  func(Recovery) { l.note(&l.back) },
		MemoryLost: func(MemoryLoss) { l.note(&l.forgot) },
		Refused: func(e Refusal) {
			if errors.Is(e.Err, context.DeadlineExceeded) {
				return // the test is over
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.errs = append(l.errs, e.Err)
		},
	}
}

// fleetWith is a fleet without callers, each on a client of its own as anybody makes it,
// retries and all.
func (r *rig) fleetWith(n int, p Policy, e Events) (workers []*Coordinator, links []*link) {
	r.t.Helper()
	for i := range n {
		l := &link{r: r}
		c := r.begin(l.retrying(0), p, Options{Worker: fmt.Sprint("w", i), Events: e})
		workers, links = append(workers, c), append(links, l)
	}
	return workers, links
}

// fleetAtWork is a fleetWith of which each worker has taken a permit: Redis knows them all.
func (r *rig) fleetAtWork(n int, p Policy, e Events) (workers []*Coordinator, links []*link) {
	r.t.Helper()
	workers, links = r.fleetWith(n, p, e)
	for _, c := range workers {
		mustAcquire(r.t, c, "")
	}
	return workers, links
}

// born is when the account was created, as Redis has it.
func (r *rig) born() time.Time {
	r.t.Helper()
	ms, err := strconv.ParseInt(r.mini.HGet("fleetlimit:{acme}:account", "born_ms"), 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	return time.UnixMilli(ms)
}

// allWithin says whether there are so many instants, none before from or more than d after it.
func allWithin(times []time.Time, n int, from time.Time, d time.Duration) bool {
	return len(times) == n && !slices.ContainsFunc(times, func(at time.Time) bool {
		return at.Before(from) || at.Sub(from) > d
	})
}

// After FLUSHALL the fleet finds out with its next exchange, and then has five seconds to
// tell what it spent, in which it goes on with its shares. One that is idle finds out with a
// heartbeat.
func TestAfterAFlushAllTellForFiveSecondsWhatTheySpent(t *testing.T) {
	for name, fleet := range map[string]struct {
		callers int
		notices time.Duration
	}{"busy": {3, time.Second}, "idle": {0, 10 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				const limit, n = 120, 4
				var log logbook
				workers, _ := r.fleetAtWork(n, Policy{Limit: limit, Headroom: 1}, log.events())
				begun := time.Now()
				var flushed time.Time
				time.AfterFunc(123*time.Second, func() {
					flushed = time.Now()
					r.mini.FlushAll()
				})
				times := grantTimes(t, workers, fleet.callers, 5*time.Minute, func(p *Permit) {
					p.Sent()
					time.Sleep(100 * time.Millisecond)
				})
				time.Sleep(5*time.Minute - time.Since(begun))
				synctest.Wait()
				log.mu.Lock()
				defer log.mu.Unlock()
				born := r.born()
				if !allWithin([]time.Time{born}, 1, flushed, fleet.notices) {
					t.Errorf("noticed %v after the flush, want %v at most", born.Sub(flushed), fleet.notices)
				}
				const exact = 100 * time.Millisecond
				if !allWithin(log.forgot, n, born, exact) || !allWithin(log.alone, n, born, exact) {
					t.Errorf("noticed at %v and alone from %v on, want all %d at %v", log.forgot, log.alone, n, born)
				}
				if !allWithin(log.back, n, born.Add(5*time.Second), exact) {
					t.Errorf("back at %v, want all %d five seconds after %v", log.back, n, born)
				}
				if len(log.errs) != 0 {
					t.Errorf("callers got errors: %v", log.errs)
				}
				if most := mostWithin(times, time.Minute); most > limit {
					t.Errorf("%d requests in a minute, limit %d", most, limit)
				}
				from := flushed.Sub(begun)
				if got := between(times, from, from+5*time.Second); fleet.callers > 0 && got < 5*limit/60/2 {
					t.Errorf("%d requests in the five seconds, want the fleet to go on", got)
				}
				closeAll(t, workers...)
			})
		})
	}
}

// Which slots are taken is told with heartbeats, and by those who watch jobs with their
// polls: until all have had the time for it, no slot is given.
func TestAfterAFlushNoSlotIsGivenForAHeartbeat(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var log logbook
		p := Policy{Limit: 6000, Headroom: 1, Endpoints: []Endpoint{
			{Pattern: chat, Slots: 2}, {Pattern: video, Slots: 2, JobTTL: 10 * time.Minute},
		}}
		workers, _ := r.fleetWith(2, p, log.events())
		var held []*Permit
		for _, e := range []string{chat, video} {
			held = append(held, mustAcquire(t, workers[0], e))
		}
		mustAcquire(t, workers[1], "")
		time.Sleep(time.Minute)
		r.mini.FlushAll()
		for e, after := range map[string]time.Duration{
			chat:  30*time.Second/3 + time.Second,
			video: time.Minute + time.Second, // a third of the TTL would be more
		} {
			waits := acquireSoon(workers[1], e)
			go func() {
				at := (<-waits).Sub(r.born())
				// Who waits for a slot asks once a second.
				if at < after || at > after+time.Second+time.Millisecond {
					t.Errorf("a slot of %s was given %v after the flush, want %v, and a second more at most", e, at, after)
				}
			}()
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		s, err := workers[0].State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 1 || s.Endpoints[1].InUse != 1 {
			t.Errorf("%+v %v, want of each endpoint the slot in use that was held before", s.Endpoints, err)
		}
		for _, p := range held {
			if isClosed(p.Lost()) {
				t.Errorf("a slot of %s was lost", p.lane.name)
			}
			p.Release()
		}
		closeAll(t, workers...)
	})
}

// Whoever does nothing but hold slots finds out with a heartbeat that Redis has forgotten
// them, and tells it again before it takes them to be lost.
func TestAnIdleHolderKeepsItsSlotWhenRedisForgets(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", policy)
		held := mustAcquire(t, c, chat)
		for range 5 {
			time.Sleep(63 * time.Second) // now and then just before a heartbeat
			r.mini.FlushAll()
		}
		time.Sleep(2 * time.Minute)
		if isClosed(held.Lost()) {
			t.Error("the slot was lost, though nobody else can have taken it")
		}
		if s, err := c.State(context.Background()); err != nil || s.Endpoints[0].InUse != 1 {
			t.Errorf("%+v %v, want the slot in use", s.Endpoints, err)
		}
		held.Release()
		closeAll(t, c)
	})
}

// SCRIPT FLUSH costs the call that finds out one command more, and no time.
func TestAScriptFlushCostsOneCommandAndNoTime(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		commands := new(countCommands)
		r.rdb.AddHook(commands)
		c := r.workerWith("a", Policy{Limit: 600, Headroom: 1}, noOutage(t))
		mustAcquire(t, c, "")
		ctx, cancel := within(patience)
		defer cancel()
		time.Sleep(time.Minute + 3*time.Second) // the next heartbeat is 7 s away
		for _, ask := range []func(context.Context, Request) (*Permit, error){c.Acquire, c.TryAcquire} {
			if err := r.rdb.ScriptFlush(context.Background()).Err(); err != nil {
				t.Fatal(err)
			}
			for _, want := range []int64{2, 1} {
				before, start := commands.n.Load(), time.Now()
				if _, err := ask(ctx, Request{}); err != nil {
					t.Fatal(err)
				}
				if took, n := time.Since(start), commands.n.Load()-before; took != 0 || n != want {
					t.Errorf("a permit took %v and %d commands, want no time and %d", took, n, want)
				}
			}
		}
		// A heartbeat finds out as well.
		if err := r.rdb.ScriptFlush(context.Background()).Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if s, err := c.State(context.Background()); err != nil || s.Alive != 1 {
			t.Errorf("%d workers alive, %v", s.Alive, err)
		}
		closeAll(t, c)
	})
}

// CLIENT KILL: whoever's connection is gone asks once more, on a new one, at once.
func TestConnectionsThatAreKilledCostNoTime(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit, kills = 120, 20
		workers, links := r.fleetWith(4, Policy{Limit: limit, Headroom: 1}, noOutage(t))
		go func() {
			time.Sleep(2 * time.Minute) // heartbeats are under way
			for range kills {
				for _, l := range links {
					l.kill()
				}
				time.Sleep(3070 * time.Millisecond) // just before an exchange, and just after one
			}
		}()
		times := grantTimes(t, workers, 3, 4*time.Minute, func(p *Permit) { p.Sent() })
		from := 2 * time.Minute
		if got := between(times, from, from+kills*3*time.Second); got < limit-4 {
			t.Errorf("%d requests in the minute of the kills, want %d, less one of each worker whose answer was under way", got, limit)
		}
		if most := mostWithin(times, time.Minute); most > limit {
			t.Errorf("%d requests in a minute, limit %d", most, limit)
		}
		closeAll(t, workers...)
	})
}

// With TLS nobody sees of an idle connection that the server has closed it: a client that has
// several meets one after the other.
func TestSeveralIdleConnectionsThatWereKilledAreNoOutage(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		workers, links := r.fleetAtWork(1, Policy{Limit: 600, Headroom: 1, LeaseTTL: time.Hour}, noOutage(t))
		c, l := workers[0], links[0]
		ctx, cancel := within(patience)
		defer cancel()
		time.Sleep(time.Second) // the first heartbeat is over
		asked := 1
		for _, ask := range []func(context.Context, Request) (*Permit, error){c.Acquire, c.TryAcquire} {
			end := r.hold()
			for range 2 {
				go c.rdb.Ping(context.Background())
			}
			synctest.Wait()
			end()
			synctest.Wait()
			if idle := c.rdb.PoolStats().IdleConns; idle < 2 {
				t.Errorf("%d idle connections, want 2", idle)
			}
			l.kill()
			if _, err := ask(ctx, Request{}); err != nil {
				t.Error(err)
			}
			asked++
			if used := r.used(c); used != asked {
				t.Errorf("%d requests are counted, want %d: none was heard twice", used, asked)
			}
		}
		// The subscription, which was killed as well, holds a mutex while it greets Redis again:
		// virtual time would stand still for who closes it meanwhile.
		time.Sleep(time.Second)
		closeAll(t, c)
	})
}

// If Redis cannot be reached again at once, it is taken to be away: it is tried 75 ms later
// at the latest, and then all tell for five seconds.
func TestAnOutageOfAMomentCostsFiveSeconds(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var log logbook
		workers, links := r.fleetAtWork(2, Policy{Limit: 600, Headroom: 1}, log.events())
		time.Sleep(63 * time.Second)
		links[0].setCut(true)
		alone := acquireSoon(workers[0], "")
		for log.count(&log.alone) == 0 {
			time.Sleep(time.Millisecond)
		}
		struck := time.Now()
		links[0].setCut(false)
		<-alone
		time.Sleep(time.Minute)
		synctest.Wait()
		log.mu.Lock()
		defer log.mu.Unlock()
		const tried = 75 * time.Millisecond
		if !allWithin(log.alone, 2, struck.Add(-time.Millisecond), tried+time.Millisecond) {
			t.Errorf("alone from %v on, want both %v after %v at most", log.alone, tried, struck)
		}
		if !allWithin(log.back, 2, struck.Add(5*time.Second), tried+time.Millisecond) {
			t.Errorf("back at %v, want both five seconds after %v, and %v more at most", log.back, struck, tried)
		}
		closeAll(t, workers...)
	})
}

// hold keeps all commands waiting, as CLIENT PAUSE does, and a server that is stopped: they
// are carried out when it ends. A script that is under way would be held in its middle, with
// miniredis's mutex.
func (r *rig) hold() (end func()) {
	synctest.Wait()
	gate := make(chan struct{})
	r.mini.Server().SetPreHook(func(*server.Peer, string, ...string) bool {
		<-gate
		return false
	})
	return func() {
		r.mini.Server().SetPreHook(nil)
		close(gate)
	}
}

// CLIENT PAUSE of less than RedisTimeout is a slow Redis. A longer one costs one caller the
// time-out, and ends with the next try, 3 s later at most, and the five seconds in which all
// tell. There are none if a call that hung has been granted something when it ended.
func TestAPausedRedisIsSlowOrAway(t *testing.T) {
	const timeout = 2 * time.Second
	for _, pause := range []time.Duration{1900 * time.Millisecond, 2500 * time.Millisecond, 4 * time.Second, 10 * time.Second, time.Minute} {
		t.Run(pause.String(), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				var log logbook
				workers, _ := r.fleetAtWork(2, Policy{Limit: 600, Headroom: 1}, log.events())
				time.Sleep(63 * time.Second)
				start := time.Now()
				time.AfterFunc(pause, r.hold())
				mustAcquire(t, workers[0], "")
				took := time.Since(start)
				interval := workers[0].share.horizon() / 300 // of a half of the limit
				second := time.Now()
				mustAcquire(t, workers[0], "")
				if pause > timeout && time.Since(second) > interval+time.Millisecond {
					t.Errorf("the second caller waited %v, want the pace of the share, %v", time.Since(second), interval)
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				log.mu.Lock()
				defer log.mu.Unlock()
				if pause <= timeout {
					if took != pause || len(log.alone) != 0 {
						t.Errorf("waited %v, alone from %v on; want to wait for the end of the pause, and nobody alone", took, log.alone)
					}
					closeAll(t, workers...)
					return
				}
				if took < timeout || took > timeout+interval+time.Millisecond {
					t.Errorf("waited %v, want the time-out, %v, and then the share's pace, %v", took, timeout, interval)
				}
				if len(log.alone) == 0 || !log.alone[0].Equal(start.Add(timeout)) {
					t.Errorf("alone from %v on, want the one that asked %v after %v", log.alone, timeout, start)
				}
				if !allWithin(log.back, len(log.alone), start.Add(pause), 8*time.Second+time.Millisecond) {
					t.Errorf("alone from %v on, and back at %v; want all back 8 s after %v at most", log.alone, log.back, start.Add(pause))
				}
				closeAll(t, workers...)
			})
		})
	}
}

// Who sleeps until a time that Redis named wakes up when Redis is lost, for its share may
// have room earlier; and who still waits is served when Redis is back.
func TestWhoSleepsUntilItsTurnIsWokenWhenRedisIsLostAndWhenItIsBack(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 60, Burst: 1, Headroom: 1}
		for i := range 30 {
			p.Endpoints = append(p.Endpoints, Endpoint{Pattern: fmt.Sprint("POST /", i), Slots: 1})
		}
		a, l := r.linked("a", p, OwnShare)
		b, _ := r.linked("b", p, OwnShare)
		start := time.Now()
		mustAcquire(t, a, "")
		for _, e := range p.Endpoints {
			acquireSoon(b, e.Pattern)
		}
		time.Sleep(5 * time.Second) // a's heartbeat says that there are two
		alone := acquireSoon(a, "")
		time.Sleep(time.Second)
		a.mu.Lock()
		named := a.lanes[anyEndpoint].notBefore.Sub(start)
		a.mu.Unlock()
		if named < 25*time.Second {
			t.Fatalf("its turn is to come after %v, want it behind all others", named)
		}
		l.setCut(true)
		// The heartbeat after 10 s notices, and the share has one for it every two seconds.
		if at := (<-alone).Sub(start); at < 10*time.Second || at > 13*time.Second {
			t.Errorf("served after %v, want its share right after Redis was lost after 10 s", at)
		}

		var waits []<-chan time.Time
		for range 60 {
			waits = append(waits, acquireSoon(a, ""))
		}
		time.Sleep(20 * time.Second)
		l.setCut(false)
		back := time.Now()
		var last time.Duration
		for _, w := range waits {
			last = max(last, (<-w).Sub(back))
		}
		// 8 s until Redis decides again, and then at the pace of the limit.
		if last > 90*time.Second {
			t.Errorf("the last was served %v after Redis was back", last)
		}
		closeAll(t, a, b)
	})
}

// What TryAcquire takes is the worker's own as what Acquire takes: Redis is told of it again
// when it has forgotten, and a share that is spent alone is smaller by it.
func TestWhatTryAcquireTakesIsCountedInTheOwnShare(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 60, Burst: 60, Headroom: 1})
		for range 20 {
			mustAcquire(t, c, "")
			if _, err := c.TryAcquire(context.Background(), Request{}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		r.mini.FlushAll()
		time.Sleep(15 * time.Second) // a heartbeat, and five seconds
		if used := r.used(c); used != 40 {
			t.Errorf("%d requests are counted, want 20 of Acquire and 20 of TryAcquire", used)
		}
		closeAll(t, c)
	})
}

// One worker's network goes and comes every few seconds: the fleet keeps to the limit, uses
// most of it, and all work with Redis in the end.
func TestAWorkerWhoseNetworkFlapsDoesNoHarm(t *testing.T) {
	for _, flap := range []struct{ cut, back time.Duration }{
		{200 * time.Millisecond, 2 * time.Second},
		{2 * time.Second, 2 * time.Second},
		{5 * time.Second, 3 * time.Second},
		{4 * time.Second, 9 * time.Second},
	} {
		t.Run(fmt.Sprintf("cut=%v/back=%v", flap.cut, flap.back), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				const limit, times = 120, 15
				begun := time.Now()
				workers, links, stop := r.fleet(4, 3, Policy{Limit: limit, Headroom: 1})
				time.Sleep(2*time.Minute + 300*time.Millisecond)
				from := time.Since(begun)
				for range times {
					links[0].setCut(true)
					time.Sleep(flap.cut)
					links[0].setCut(false)
					time.Sleep(flap.back)
				}
				to := time.Since(begun)
				time.Sleep(3 * time.Minute)
				for _, c := range workers {
					c.mu.Lock()
					if c.away != nil {
						t.Errorf("%s works without Redis still: %v", c.worker, c.away)
					}
					c.mu.Unlock()
				}
				sent := stop()
				if most := mostWithin(sent, time.Minute); most > limit {
					t.Errorf("%d requests in a minute, limit %d", most, limit)
				}
				rate := float64(between(sent, from, to)) / (limit * (to - from).Minutes())
				if rate < 0.7 {
					t.Errorf("%.0f %% of the limit used while it flapped", 100*rate)
				}
				// What was granted just as it was cut off counts for a window, though nobody has got it;
				// while it fills the window the pace cannot catch up.
				if got := between(sent, to+30*time.Second, to+150*time.Second); got < 2*limit*90/100 {
					t.Errorf("%d requests in two minutes after it, want %d", got, 2*limit)
				}
			})
		})
	}
}

// A 429 with something left says that all slots are taken: Redis is there for others, and
// who is alone takes none of that endpoint until it hears Redis again.
func TestWhoIsAloneTakesNoSlotThatTheAPIHasRefused(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const embed = "POST /embed"
		c, l := r.linked("a", Policy{
			Limit: 6000, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 2}, {Pattern: embed, Slots: 2}},
		}, OwnShare)
		for range 2 { // outages: what was refused in the first is no matter in the second
			held := []*Permit{mustAcquire(t, c, chat), mustAcquire(t, c, embed)}
			time.Sleep(time.Minute)
			l.setCut(true)
			time.Sleep(90 * time.Second) // it is the only worker, so all slots are its own by now
			p, err := c.TryAcquire(context.Background(), Request{Endpoint: chat})
			if err != nil {
				t.Errorf("a slot of its own: %v", err)
				break
			}
			said := NoFeedback
			said.Status, said.Remaining = 429, 5
			p.Report(said)
			p.Release()
			for range 5 {
				time.Sleep(time.Minute)
				var full *WaitError
				if p, err := c.TryAcquire(context.Background(), Request{Endpoint: chat}); err == nil {
					t.Error("it has taken a slot")
					p.Release()
				} else if !errors.As(err, &full) || full.Gate != GateSlots {
					t.Errorf("error %v, want no slot", err)
				}
				if p, err := c.TryAcquire(context.Background(), Request{Endpoint: embed}); err != nil {
					t.Errorf("the other endpoint: %v", err)
				} else {
					p.Release()
				}
			}
			l.setCut(false)
			time.Sleep(30 * time.Second)
			p, err = c.TryAcquire(context.Background(), Request{Endpoint: chat})
			if err != nil {
				t.Errorf("Redis is back, and has slots: %v", err)
			} else {
				p.Release()
			}
			for _, p := range held {
				p.Release()
			}
			time.Sleep(time.Second)
		}
		closeAll(t, c)
	})
}

// A reloading client is one that can look who is the master now, as a cluster's can.
type reloading struct {
	redis.UniversalClient
	asked atomic.Int64
}

func (r *reloading) ReloadState(context.Context) { r.asked.Add(1) }

// A cluster's client goes on dialling a master that has died: before each try it is made to
// ask who is the master now, and never while Redis answers.
func TestAClusterIsAskedForItsMasterBeforeEachTry(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		l := &link{r: r}
		rdb := &reloading{UniversalClient: l.client()}
		c := r.begin(rdb, Policy{Limit: 600, Headroom: 1}, Options{Worker: "a"})
		mustAcquire(t, c, "")
		time.Sleep(time.Minute)
		if n := rdb.asked.Load(); n != 0 {
			t.Errorf("asked %d times while Redis answers", n)
		}
		l.setCut(true)
		mustAcquire(t, c, "")
		synctest.Wait()
		if n := rdb.asked.Load(); n != 1 {
			t.Errorf("asked %d times at once, want once", n)
		}
		before := rdb.asked.Load()
		time.Sleep(time.Minute)
		if n := rdb.asked.Load() - before; n < 60/3 || n > 60 {
			t.Errorf("asked %d times in a minute, want once with each try, every 1 to 3 s", n)
		}
		l.setCut(false)
		time.Sleep(10 * time.Second)
		before = rdb.asked.Load()
		time.Sleep(time.Minute)
		if n := rdb.asked.Load() - before; n != 0 {
			t.Errorf("asked %d times after Redis was back", n)
		}
		closeAll(t, c)
	})
}
