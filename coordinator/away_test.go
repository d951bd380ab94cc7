package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A link is one process's way to Redis, which can be cut, or hang.
type link struct {
	r     *rig
	cut   atomic.Bool
	hangs atomic.Bool
	deaf  atomic.Bool // messages of subscriptions are lost
	mu    sync.Mutex
	conns []*linkConn
}

var errCut = errors.New("cut off")

func (l *link) dial(context.Context, string, string) (net.Conn, error) {
	if l.cut.Load() {
		return nil, errCut
	}
	conn, err := redistest.Dial(l.r.mini)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &linkConn{Conn: conn, l: l}
	l.conns = append(l.conns, c)
	return c, nil
}

type linkConn struct {
	net.Conn
	l      *link
	killed atomic.Bool // by the server

	subscribes, lost atomic.Bool
}

func (c *linkConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("\r\nsubscribe\r\n")) {
		c.subscribes.Store(true)
	}
	if c.l.hangs.Load() || c.killed.Load() || c.lost.Load() {
		return len(b), nil // and nothing will ever come back
	}
	return c.Conn.Write(b)
}

func (c *linkConn) SetWriteDeadline(at time.Time) error {
	return c.unlessKilled(c.Conn.SetWriteDeadline(at))
}
func (c *linkConn) SetReadDeadline(at time.Time) error {
	return c.unlessKilled(c.Conn.SetReadDeadline(at))
}

// unlessKilled drops an error that a kernel's connection would not have: its own end is open.
func (c *linkConn) unlessKilled(err error) error {
	if c.killed.Load() {
		return nil
	}
	return err
}

func (c *linkConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if c.killed.Load() {
			return 0, io.EOF
		}
		if err == nil && c.lost.Load() {
			continue
		}
		if err != nil || !c.l.deaf.Load() || !bytes.Contains(b[:n], []byte("\r\nmessage\r\n")) {
			return n, err
		}
	}
}

func (l *link) setCut(cut bool) {
	l.cut.Store(cut)
	if cut {
		l.drop()
	}
}

// drop ends all connections.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// loseSubscription loses the connections that subscribe, and tells neither end.
func (l *link) loseSubscription() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.lost.Store(c.subscribes.Load())
	}
}

// kill is CLIENT KILL of all connections: the server closes them, and takes new ones.
func (l *link) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.killed.Store(true)
		c.Close()
	}
	l.conns = nil
}

// linked returns a worker with a way to Redis of its own.
func (r *rig) linked(name string, p Policy, when WhenAway) (*Coordinator, *link) {
	r.t.Helper()
	l := &link{r: r}
	return r.begin(l.client(), p, Options{Worker: name, WhenAway: when}), l
}

// client returns a connection pool that goes this way, until the test ends.
func (l *link) client() *redis.Client { return l.retrying(-1) }

// retrying is a client with so many retries; 0: as many as go-redis makes by default.
func (l *link) retrying(times int) *redis.Client {
	rdb := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Dialer: l.dial, DisableIdentity: true, Protocol: 2, MaxRetries: times,
	})
	l.r.ends = append(l.r.ends, func() { rdb.Close() })
	return rdb
}

// A fleet of workers that take permits as fast as they get them, and the times of
// the grants.
func (r *rig) fleet(n, callers int, p Policy) (workers []*Coordinator, links []*link, stop func() []time.Duration) {
	start := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var times []time.Duration
	var wg sync.WaitGroup
	for i := range n {
		c, l := r.linked(fmt.Sprintf("w%d", i), p, OwnShare)
		workers, links = append(workers, c), append(links, l)
		for range callers {
			wg.Go(func() {
				for {
					permit, err := c.Acquire(ctx, Request{})
					if err != nil {
						return
					}
					permit.Sent()
					mu.Lock()
					times = append(times, time.Since(start))
					mu.Unlock()
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
	}
	return workers, links, func() []time.Duration {
		cancel()
		wg.Wait()
		closeAll(r.t, workers...)
		slices.Sort(times)
		return times
	}
}

func between(times []time.Duration, from, to time.Duration) (n int) {
	for _, t := range times {
		if t >= from && t < to {
			n++
		}
	}
	return n
}

// Every pod that falls back to the full limit makes R into N × R.
func TestFleetGoesOnWithItsSharesWhileRedisIsAway_Litellm35533(t *testing.T) {
	for _, outage := range []time.Duration{5 * time.Second, 30 * time.Second, 3 * time.Minute} {
		for _, forgets := range []bool{false, true} {
			t.Run(fmt.Sprintf("outage=%v/forgets=%v", outage, forgets), func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, r *rig) {
					const limit = 120
					_, links, stop := r.fleet(4, 3, Policy{Limit: limit, Headroom: 1})
					time.Sleep(2 * time.Minute)
					for _, l := range links {
						l.setCut(true)
					}
					if forgets {
						r.mini.FlushAll()
					}
					time.Sleep(outage)
					for _, l := range links {
						l.setCut(false)
					}
					time.Sleep(3 * time.Minute)
					times := stop()

					if most := mostWithin(times, time.Minute); most > limit {
						t.Errorf("%d requests in a minute, limit %d", most, limit)
					}
					begin := 2 * time.Minute
					// Whoever may have been cut off alone lets the others notice first.
					const lapse = 2500 * time.Millisecond
					if got, want := between(times, begin, begin+outage), limit*(outage-lapse).Seconds()/60*0.75-2; float64(got) < want {
						t.Errorf("%d requests in the outage, want at least %.0f", got, want)
					}
					from := begin + outage + 10*time.Second
					if got := between(times, from, from+2*time.Minute); got < 2*limit*95/100 {
						t.Errorf("%d requests in the two minutes after it, want %d", got, 2*limit)
					}
				})
			})
		}
	}
}

// When the whole fleet starts, the first to be counted hears of nobody else until its next
// heartbeat: it must not take the budget to be its own if Redis goes away before.
func TestAFleetThatHasJustStartedDoesNotKnowItsSize(t *testing.T) {
	for _, age := range []time.Duration{30 * time.Millisecond, 5 * time.Second, 9 * time.Second} {
		t.Run(age.String(), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				const limit = 60
				_, links, stop := r.fleet(4, 5, Policy{Limit: limit, Headroom: 1})
				time.Sleep(age)
				for _, l := range links {
					l.setCut(true)
				}
				time.Sleep(4 * time.Minute)
				for _, l := range links {
					l.setCut(false)
				}
				time.Sleep(10 * time.Second)
				if most := mostWithin(stop(), time.Minute); most > limit {
					t.Errorf("%d requests in a minute, limit %d", most, limit)
				}
			})
		})
	}
}

// Who is cut off alone goes on with its share, and the others do not notice.
func TestOneWorkerCutOff(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		begun := time.Now()
		workers, links, stop := r.fleet(4, 3, Policy{Limit: 120, Headroom: 1})
		time.Sleep(2 * time.Minute)
		links[0].setCut(true)
		time.Sleep(20 * time.Second)
		s, err := workers[1].State(context.Background())
		if err != nil || s.Backoff != nil {
			t.Errorf("the others are paused: %+v %v", s.Backoff, err)
		}
		links[0].setCut(false)
		time.Sleep(4 * time.Second)
		if s, _ = workers[1].State(context.Background()); s.Backoff != nil {
			t.Errorf("the return of one stops the others: %+v", s.Backoff)
		}
		now := time.Since(begun)
		if sent := between(stop(), now-time.Minute, now); s.Used < sent {
			t.Errorf("%d used, though %d were sent in the last minute: want what was spent alone to be counted", s.Used, sent)
		}
	})
}

func TestBehaviourWhileRedisIsAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		waits, linkOfWaits := r.linked("waits", policy, Wait)
		fails, linkOfFails := r.linked("fails", policy, FailFast)
		for _, c := range []*Coordinator{waits, fails} {
			mustAcquire(t, c, "")
		}
		linkOfWaits.setCut(true)
		linkOfFails.setCut(true)

		if _, err := fails.Acquire(context.Background(), Request{}); !errors.Is(err, ErrRedisAway) {
			t.Errorf("error %v, want ErrRedisAway", err)
		}
		if _, err := fails.TryAcquire(context.Background(), Request{}); !errors.Is(err, ErrRedisAway) {
			t.Errorf("error %v of TryAcquire, want ErrRedisAway", err)
		}
		ctx, cancel := within(10 * time.Second)
		if _, err := waits.Acquire(ctx, Request{}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrRedisAway) {
			t.Errorf("error %v, want ErrRedisAway and an exceeded deadline", err)
		}
		cancel()
		time.AfterFunc(10*time.Second, func() { linkOfWaits.setCut(false); linkOfFails.setCut(false) })
		start := time.Now()
		mustAcquire(t, waits, "")
		if took := time.Since(start); took < 10*time.Second || took > 14*time.Second {
			t.Errorf("served after %v, want Redis to be back for at most 4 s", took)
		}
		time.Sleep(4 * time.Second)
		mustAcquire(t, fails, "")
		closeAll(t, waits, fails)
	})
}

// A Redis that accepts and never answers costs one caller one time-out, and the
// others nothing.
func TestHungRedisCostsOneTimeout(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, l := r.linked("a", Policy{Limit: 600, Headroom: 1}, OwnShare)
		mustAcquire(t, c, "")
		time.Sleep(time.Minute)
		l.hangs.Store(true)
		start := time.Now()
		mustAcquire(t, c, "")
		if took := time.Since(start); took < 2*time.Second || took > 2200*time.Millisecond {
			t.Errorf("the first caller waited %v, want the time-out of 2 s", took)
		}
		start = time.Now()
		for range 20 {
			mustAcquire(t, c, "")
		}
		if took := time.Since(start); took > 21*100*time.Millisecond {
			t.Errorf("20 callers waited %v, want the pace of the share, 100 ms each", took)
		}
		l.hangs.Store(false)
		l.setCut(true)
		l.setCut(false)
		time.Sleep(20 * time.Second)
		s, err := c.State(context.Background())
		if err != nil || s.Used < 20 {
			t.Errorf("state %+v %v, want 20 used", s, err)
		}
		closeAll(t, c)
	})
}

// Slots are shared as well: nobody takes more than it had, and once all leases have
// ended nobody more than its part.
func TestSlotsHoldWhileRedisIsAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 6000, Headroom: 1, Endpoints: []Endpoint{{Pattern: video, Slots: 4}}}
		a, linkOfA := r.linked("a", p, OwnShare)
		b, linkOfB := r.linked("b", p, OwnShare)
		mustAcquire(t, a, "")
		mustAcquire(t, b, "")
		time.Sleep(31 * time.Second) // both have counted two workers
		mustAcquire(t, a, "")
		mustAcquire(t, b, "")

		var busy, most atomic.Int32
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		use := func(c *Coordinator, callers int, served *atomic.Int32) {
			for range callers {
				wg.Go(func() {
					for {
						permit, err := c.Acquire(ctx, Request{Endpoint: video})
						if err != nil {
							return
						}
						served.Add(1)
						n := busy.Add(1)
						for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
						}
						call, done := permit.Context(ctx)
						select {
						case <-time.After(20 * time.Second):
						case <-call.Done():
						}
						done()
						busy.Add(-1)
						permit.Release()
					}
				})
			}
		}
		var ofA, ofB atomic.Int32
		use(a, 4, &ofA)
		time.Sleep(5 * time.Second)
		linkOfA.setCut(true)
		linkOfB.setCut(true)
		use(b, 4, &ofB)
		time.Sleep(20 * time.Second)
		if ofA.Load() < 8 || ofB.Load() != 0 {
			t.Errorf("%d calls of who had all slots and %d of who had none, want at least 8 and 0", ofA.Load(), ofB.Load())
		}
		time.Sleep(2 * time.Minute)
		if ofB.Load() < 4 {
			t.Errorf("%d calls of who had no slots, want its part after all leases have ended", ofB.Load())
		}
		linkOfA.setCut(false)
		linkOfB.setCut(false)
		time.Sleep(time.Minute)
		if n := most.Load(); n > 4 {
			t.Errorf("%d calls at once, cap 4", n)
		}
		cancel()
		wg.Wait()
		synctest.Wait()
		s, err := a.State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 0 {
			t.Errorf("slots in use at the end: %+v %v", s.Endpoints[0], err)
		}
		closeAll(t, a, b)
	})
}

func TestPushbackIsObeyedWhileRedisIsAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, l := r.linked("a", Policy{Limit: 60, Headroom: 1}, OwnShare)
		mustAcquire(t, c, "")
		time.Sleep(time.Minute)
		l.setCut(true)
		p := mustAcquire(t, c, "")
		f := NoFeedback
		f.Status, f.RetryAfter = 429, 20*time.Second
		p.Report(f)
		start := time.Now()
		mustAcquire(t, c, "")
		if took := time.Since(start); took < 20*time.Second || took > 22*time.Second {
			t.Errorf("waited %v after a 429 with Retry-After 20", took)
		}
		l.setCut(false)
		time.Sleep(10 * time.Second)
		if s, err := c.State(context.Background()); err != nil || s.Backoff != nil {
			t.Errorf("a pause that is over was told: %+v %v", s.Backoff, err)
		}
		closeAll(t, c)
	})
}

func TestClosingWhileRedisIsAway(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		closeHung(t, r, func(*link) {})
	})
}

// The subscription had to dial anew, and waits for the answer to its greeting: go-redis
// lets nobody close it meanwhile.
func TestClosingWhileTheSubscriptionHangs(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		closeHung(t, r, (*link).drop)
	})
}

// closeHung closes a coordinator whose Redis hangs, after something more has happened to
// its connections.
func closeHung(t *testing.T, r *rig, happens func(*link)) {
	t.Helper()
	c, l := r.linked("a", policy, OwnShare)
	mustAcquire(t, c, video)
	l.hangs.Store(true)
	happens(l)
	go c.Acquire(context.Background(), Request{})
	time.Sleep(10 * time.Second)
	start := time.Now()
	if err := c.Close(); err == nil {
		t.Error("Close told nothing of a Redis that hangs")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	l.setCut(true)
	time.Sleep(time.Minute)
}

// A Redis that forgets everything, without having been away, learns it again from
// those who sent in the last window.
func TestForgetfulRedisIsToldEverythingAgain(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		const limit = 120
		workers, _, stop := r.fleet(4, 3, Policy{Limit: limit, Headroom: 1, Endpoints: []Endpoint{{Pattern: video, Slots: 1}}})
		held := mustAcquire(t, workers[0], video)
		time.Sleep(2 * time.Minute)
		r.mini.FlushAll()
		time.Sleep(30 * time.Second)
		select {
		case <-held.Lost():
			t.Error("the slot was lost, though nobody else can have taken it")
		default:
		}
		s, err := workers[1].State(context.Background())
		if err != nil || s.Endpoints[0].InUse != 1 {
			t.Errorf("slots in use: %+v %v, want the one that is held", s.Endpoints, err)
		}
		held.Release()
		time.Sleep(3 * time.Minute)
		times := stop()
		if most := mostWithin(times, time.Minute); most > limit {
			t.Errorf("%d requests in a minute, limit %d", most, limit)
		}
		if got := between(times, 130*time.Second, 250*time.Second); got < 2*limit*95/100 {
			t.Errorf("%d requests in the two minutes after it, want %d", got, 2*limit)
		}
	})
}

// A report that tells nothing new is held back; after Redis has lost its memory the
// limit is news again.
func TestARedisThatForgotTheLimitIsToldAgain(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 60, Headroom: 1})
		said := Feedback{Status: 200, Limit: 30, Remaining: 29, Reset: -1, RetryAfter: -1}
		mustAcquire(t, c, "").Report(said)
		time.Sleep(time.Second)
		r.mini.FlushAll()
		time.Sleep(time.Minute)
		mustAcquire(t, c, "").Report(said)
		time.Sleep(time.Second)
		if got := r.mini.HGet("fleetlimit:{"+c.Account()+"}:account", "reported"); got != "30" {
			t.Errorf("Redis knows the limit %q, want 30", got)
		}
		c.Close()
	})
}

// A Redis that answers, though not with what it was asked for, costs no caller a
// time-out: all go on with the worker's share at once, and with Redis when it is well.
func TestARedisThatCannotAnswerCostsNoTimeout(t *testing.T) {
	for _, says := range []string{
		"LOADING Redis is loading the dataset in memory", "OOM command not allowed when used memory > 'maxmemory'.",
		"READONLY You can't write against a read only replica.", "MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down",
		"BUSY Redis is busy running a script.", "MISCONF Redis is configured to save RDB snapshots", "NOREPLICAS Not enough good replicas to write.",
		"TRYAGAIN Multiple keys request during rehashing of slot", "ERR max number of clients reached",
	} {
		word, _, _ := strings.Cut(says, " ")
		t.Run(word, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				var alone, back, late atomic.Int64
				c, err := New((&link{r: r}).client(), Policy{Limit: 600, Headroom: 1}, Options{
					Account: "acme", Worker: "a", Logger: slog.New(slog.DiscardHandler),
					Events: Events{
						Degraded:  func(Degradation) { alone.Add(1) },
						Recovered: func(Recovery) { back.Add(1) },
						Exchanged: func(e Exchange) {
							if errors.Is(e.Err, context.DeadlineExceeded) || e.Took >= time.Second {
								late.Add(1)
							}
						},
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				mustAcquire(t, c, "")
				time.Sleep(time.Minute)
				r.mini.SetError(says)
				start := time.Now()
				for range 20 {
					mustAcquire(t, c, "")
				}
				// The first waits for the retries of what passes often.
				if took := time.Since(start); took > 20*100*time.Millisecond+500*time.Millisecond {
					t.Errorf("20 callers waited %v, want the pace of the share, 100 ms each", took)
				}
				r.mini.SetError("")
				// Tried after 3 s at the latest, and then five in which all tell.
				time.Sleep(8*time.Second + 100*time.Millisecond)
				if alone.Load() != 1 || back.Load() != 1 || late.Load() != 0 {
					t.Errorf("alone %d times, back %d times, %d exchanges timed out; want once, once and none", alone.Load(), back.Load(), late.Load())
				}
				if s, err := c.State(context.Background()); err != nil || s.Used != 20 {
					t.Errorf("%+v %v, want the 20 that were spent alone counted", s, err)
				}
				closeAll(t, c)
			})
		})
	}
}
