package coordinator

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A listening is a cluster with a worker b that listens there.
type listening struct {
	*redistest.Cluster
	rdb     *redis.ClusterClient
	account string
	b       *Coordinator
}

func startListening(t *testing.T) *listening {
	t.Helper()
	l := &listening{Cluster: redistest.StartCluster(t), account: redistest.Account(t)}
	l.rdb = redistest.Open(t, l.URL).(*redis.ClusterClient)
	l.b = l.worker(t, "b")
	mustAcquire(t, l.b, chat).Release()
	return l
}

func (l *listening) worker(t *testing.T, name string) *Coordinator {
	t.Helper()
	p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}
	c, err := New(l.rdb, p, Options{Account: l.account, Worker: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// hears publishes until worker b hears it: where the shard's master is, or its replica, which
// gets what is published there.
func (l *listening) hears(t *testing.T) {
	t.Helper()
	called := func(reset bool) bool {
		l.b.mu.Lock()
		defer l.b.mu.Unlock()
		lane := l.b.lanes[chat]
		if reset {
			lane.called = time.Time{}
		}
		return !lane.called.IsZero()
	}
	called(true)
	redistest.Eventually(t, "b hears what is published", func() error {
		if err := l.rdb.SPublish(t.Context(), l.b.keys.wakeChannel("b"), "0.000 "+chat).Err(); err != nil || called(false) {
			return err
		}
		return errors.New("it hears nothing")
	})
}

// In a cluster a wake-up goes by a sharded channel to the worker that waits. A node that
// is kept from its processor may lose its place, and with it who listens: then once more.
func TestWakeUpsInAClusterAreSharded(t *testing.T) {
	l := startListening(t)
	a := l.worker(t, "a")
	redistest.Eventually(t, "a wake-up on the sharded channel", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		sub := l.rdb.SSubscribe(ctx, l.b.keys.wakeChannel("b"))
		defer sub.Close()
		if _, err := sub.ReceiveTimeout(ctx, 10*time.Second); err != nil {
			return err
		}
		held, err := a.Acquire(ctx, Request{Endpoint: chat})
		if err != nil {
			return err
		}
		defer held.Release()
		got := make(chan error, 1)
		go func() {
			p, err := l.b.Acquire(ctx, Request{Endpoint: chat})
			if err == nil {
				p.Release()
			}
			got <- err
		}()
		for s := new(State); s.Endpoints == nil || s.Endpoints[0].Waiting != 1; {
			if s, err = a.State(ctx); err != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
		held.Release()
		m, err := sub.ReceiveTimeout(ctx, 10*time.Second)
		if err != nil {
			return err
		}
		if m, ok := m.(*redis.Message); !ok || m.Payload != "0.000 "+chat {
			return fmt.Errorf("it carried %v", m)
		}
		return <-got
	})
}

// A node that a slot leaves ends the subscriptions there, and its connections stay: the
// client would listen on to nobody.
func TestWhoListensFollowsTheSlot(t *testing.T) {
	l := startListening(t)
	key := l.b.keys.workers()
	master, replica := l.NodeOf(t, key)
	l.hears(t)
	replica.TakeOver(t)
	master.AwaitRole(t, "slave")
	l.hears(t)
	l.Migrate(t, key, func() {})
	l.hears(t)
}

// A client with an old map of the slots is referred to another node: no exchange need
// tell it first, and no time-out.
func TestWhoIsReferredToAnotherNodeListensThere(t *testing.T) {
	l := startListening(t)
	rdb := redistest.Open(t, l.URL)
	if err := rdb.Get(t.Context(), "{"+l.account+"}").Err(); err != redis.Nil {
		t.Fatal(err)
	}
	_, to := l.Migrate(t, l.b.keys.workers(), func() {})
	c, err := New(rdb, Policy{Limit: 600}, Options{Account: l.account, Worker: "c", RedisTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go c.receive(make(chan func()))
	channel := c.keys.wakeChannel("c")
	redistest.Eventually(t, "c listens where the slot is", func() error {
		at, err := to.Client.PubSubShardNumSub(t.Context(), channel).Result()
		if err == nil && at[channel] != 1 {
			err = fmt.Errorf("%v", at)
		}
		return err
	})
}

// A client that renews the subscription by itself, as when a server that is to be stopped
// says so, tells nobody: the confirmations do.
func TestARenewalByTheClientIsNoticed(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		for _, unasked := range []int{0, 1} {
			c := r.worker("a", Policy{Limit: 600})
			sub := make(chan *redis.PubSub, 1)
			c.rdb = &subscribing{UniversalClient: r.rdb, opened: sub}
			heard := make(chan func(), 2)
			go c.receive(heard)
			opened := <-sub
			time.Sleep(time.Second)
			for range unasked {
				if err := opened.Subscribe(t.Context(), c.channels()...); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
			if len(heard) != unasked {
				t.Errorf("looked %d times after %d renewals", len(heard), unasked)
			}
			c.Close()
		}
	})
}

// A subscribing client hands its subscriptions to a test.
type subscribing struct {
	redis.UniversalClient
	opened chan *redis.PubSub
}

func (s *subscribing) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	sub := s.UniversalClient.Subscribe(ctx, channels...)
	s.opened <- sub
	return sub
}

// A Ring that has no shard left panics when it is to subscribe.
func TestAClientThatPanicsEndsNoProgram(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 600})
		c.rdb = panicking{r.rdb}
		mustAcquire(t, c, "")
		time.Sleep(time.Minute)
		closeAll(t, c)
	})
}

type panicking struct{ redis.UniversalClient }

func (panicking) Subscribe(context.Context, ...string) *redis.PubSub { panic("no shard") }

// Nobody tells a worker that its subscription goes nowhere: it asks.
func TestASubscriptionThatIsLostIsMadeAnew(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}
		a := r.worker("a", p)
		b, way := r.linked("b", p, OwnShare)
		mustAcquire(t, b, "")
		synctest.Wait()
		way.loseSubscription()
		time.Sleep(confirmAfter + b.timeout + time.Second)
		handOver(t, a, b, chat, 1234*time.Millisecond)
		closeAll(t, a, b)
	})
}
