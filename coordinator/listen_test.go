package coordinator

import (
	"context"
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
	l.b = l.worker(t, l.rdb, "b")
	mustAcquire(t, l.b, "").Release()
	return l
}

func (l *listening) worker(t *testing.T, rdb redis.UniversalClient, name string) *Coordinator {
	t.Helper()
	p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}
	c, err := New(rdb, p, Options{Account: l.account, Worker: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// await waits until a worker listens at a node.
func (l *listening) await(t *testing.T, n *redistest.Node, worker string) {
	t.Helper()
	channel := l.b.keys.wakeChannel(worker)
	redistest.Eventually(t, worker+" listens to "+channel+" at "+n.Addr(), func() error {
		at, err := n.Client.PubSubShardNumSub(t.Context(), channel).Result()
		if err == nil && at[channel] != 1 {
			err = fmt.Errorf("%v", at)
		}
		return err
	})
}

// In a cluster a wake-up goes by a sharded channel to the worker that waits. A node that
// is kept from its processor may lose its place, and with it who listens: then once more.
func TestWakeUpsInAClusterAreSharded(t *testing.T) {
	l := startListening(t)
	a := l.worker(t, l.rdb, "a")
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
	stale := redistest.Open(t, l.URL)
	if err := stale.Get(t.Context(), "{"+l.account+"}").Err(); err != redis.Nil {
		t.Fatal(err)
	}
	master, replica := l.NodeOf(t, key)
	l.await(t, master, "b")
	if err := replica.Client.ClusterFailover(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	replica.AwaitRole(t, "master")
	l.await(t, replica, "b")
	_, to := l.Migrate(t, key, func() {})
	l.await(t, to, "b")

	// Who asks with an old map is referred to another node.
	mustAcquire(t, l.worker(t, stale, "c"), "").Release()
	l.await(t, to, "c")
}

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
		held := mustAcquire(t, a, chat)
		time.AfterFunc(1234*time.Millisecond, held.Release)
		start := time.Now()
		got := mustAcquire(t, b, chat)
		if took := time.Since(start); took != 1234*time.Millisecond {
			t.Errorf("the slot changed hands after %v, want 1.234 s: b hears nothing", took)
		}
		got.Release()
		closeAll(t, a, b)
	})
}
