package coordinator

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
)

// A limiter is what a process asks before it sends: ours, or one of the naive ones
// below, each a few honest lines with the flaw that somebody shipped.
type limiter interface {
	take(context.Context) (grant, error)
	crash() // as SIGKILL: nothing is said to Redis
	close()
}

// A grant is the right to send, and how to give it back.
type grant struct {
	done func()
	lost <-chan struct{} // nil: nobody would tell
}

// ours is a coordinator whose requests are all of one endpoint.
type ours struct {
	c        *Coordinator
	endpoint string
}

func (o ours) take(ctx context.Context) (grant, error) {
	p, err := o.c.Acquire(ctx, Request{Endpoint: o.endpoint})
	if err != nil {
		return grant{}, err
	}
	p.Sent()
	return grant{p.Release, p.Lost()}, nil
}

func (o ours) crash() { crash(o.c) }
func (o ours) close() { o.c.Close() }

// mortal is a process without goroutines of its own: its end is that of its callers.
type mortal struct {
	once sync.Once
	dead chan struct{}
}

func newMortal() *mortal    { return &mortal{dead: make(chan struct{})} }
func (m *mortal) crash()    { m.once.Do(func() { close(m.dead) }) }
func (m *mortal) close()    { m.crash() }
func (m *mortal) end() bool { return isClosed(m.dead) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var errDead = errors.New("the process is dead")

// sleep waits for a while, or until something comes on the channel.
func (m *mortal) sleep(ctx context.Context, d time.Duration, sooner <-chan *redis.Message) error {
	var end <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		end = timer.C
	}
	select {
	case <-end:
	case <-sooner:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.dead:
		return errDead
	}
	return nil
}

// redisRate is GCRA alone, with the burst of the limit that redis_rate.PerMinute has.
type redisRate struct {
	*mortal
	limiter *redis_rate.Limiter
	limit   redis_rate.Limit
}

func newRedisRate(limit int) func(*redis.Client) limiter {
	return func(rdb *redis.Client) limiter {
		return &redisRate{newMortal(), redis_rate.NewLimiter(rdb), redis_rate.PerMinute(limit)}
	}
}

func (r *redisRate) take(ctx context.Context) (grant, error) {
	for {
		res, err := r.limiter.Allow(ctx, "acme", r.limit)
		if err != nil {
			return grant{}, err
		}
		if res.Allowed > 0 {
			return grant{done: func() {}}, nil
		}
		if err := r.sleep(ctx, max(res.RetryAfter, time.Millisecond), nil); err != nil {
			return grant{}, err
		}
	}
}

// openFallback shares an even pace through Redis, and where Redis fails goes on with the
// whole limit by itself.
type openFallback struct {
	*redisRate
	mu   sync.Mutex
	next time.Time
}

func newOpenFallback(limit int) func(*redis.Client) limiter {
	return func(rdb *redis.Client) limiter {
		r := newRedisRate(limit)(rdb).(*redisRate)
		r.limit.Burst = 1
		return &openFallback{redisRate: r}
	}
}

func (o *openFallback) take(ctx context.Context) (grant, error) {
	g, err := o.redisRate.take(ctx)
	if err == nil || ctx.Err() != nil || o.end() {
		return g, err
	}
	o.mu.Lock()
	at := o.next
	if now := time.Now(); at.Before(now) {
		at = now
	}
	o.next = at.Add(o.limit.Period / time.Duration(o.limit.Rate))
	o.mu.Unlock()
	return grant{done: func() {}}, o.sleep(ctx, max(time.Until(at), 1), nil)
}

// counter is a semaphore that counts who is inside, in Redis, and knows no leases.
type counter struct {
	*mortal
	rdb   *redis.Client
	slots int64
	polls time.Duration // how often it looks by itself; 0: never
	wakes bool          // whether a release is told to those who wait
}

func newCounter(slots int, polls time.Duration, wakes bool) func(*redis.Client) limiter {
	return func(rdb *redis.Client) limiter { return &counter{newMortal(), rdb, int64(slots), polls, wakes} }
}

func (c *counter) take(ctx context.Context) (grant, error) {
	var freed <-chan *redis.Message
	if c.wakes {
		sub := c.rdb.Subscribe(ctx, "freed")
		defer sub.Close()
		if _, err := sub.Receive(ctx); err != nil {
			return grant{}, err
		}
		freed = sub.Channel()
	}
	for {
		n, err := c.rdb.Incr(ctx, "inside").Result()
		if err != nil {
			return grant{}, err
		}
		if n <= c.slots {
			return grant{done: c.release}, nil
		}
		c.rdb.Decr(ctx, "inside")
		if err := c.sleep(ctx, c.polls, freed); err != nil {
			return grant{}, err
		}
	}
}

func (c *counter) release() {
	c.rdb.Decr(context.Background(), "inside")
	c.rdb.Publish(context.Background(), "freed", "")
}

// turns lets callers in one after the other: who stands first in a list.
type turns struct {
	*mortal
	rdb *redis.Client
}

func newTurns(rdb *redis.Client) limiter { return &turns{newMortal(), rdb} }

func (q *turns) take(ctx context.Context) (grant, error) {
	ticket, err := q.rdb.Incr(ctx, "tickets").Result()
	if err != nil {
		return grant{}, err
	}
	mine := strconv.FormatInt(ticket, 10)
	leave := func() { q.rdb.LRem(context.Background(), "turns", 1, mine) }
	q.rdb.RPush(ctx, "turns", mine)
	for {
		if head, err := q.rdb.LIndex(ctx, "turns", 0).Result(); err == nil && head == mine {
			return grant{done: leave}, nil
		}
		if err := q.sleep(ctx, 100*time.Millisecond, nil); err != nil {
			if err != errDead {
				leave()
			}
			return grant{}, err
		}
	}
}

// session is a semaphore whose processes keep a session alive, and whose places are not
// bound to it.
type session struct {
	*mortal
	rdb   *redis.Client
	slots int64
}

func newSession(slots int) func(*redis.Client) limiter {
	return func(rdb *redis.Client) limiter { return &session{newMortal(), rdb, int64(slots)} }
}

func (s *session) take(ctx context.Context) (grant, error) {
	for {
		n, err := s.rdb.SCard(ctx, "places").Result()
		if err == nil && n < s.slots {
			break
		}
		if err := s.sleep(ctx, 100*time.Millisecond, nil); err != nil {
			return grant{}, err
		}
	}
	place := strconv.FormatInt(time.Now().UnixNano(), 10)
	s.rdb.SAdd(ctx, "places", place)
	live, done := context.WithCancel(context.Background())
	go func() {
		for s.rdb.Set(live, "session:"+place, "", 30*time.Second); s.sleep(live, 10*time.Second, nil) == nil; {
			s.rdb.Expire(live, "session:"+place, 30*time.Second)
		}
	}()
	return grant{done: func() {
		done()
		s.rdb.SRem(context.Background(), "places", place)
	}}, nil
}
