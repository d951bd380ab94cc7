package coordinator

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A cuttable connection can be cut in mid-reply: the server hears what it is told, and
// the client does not hear the answer.
type cuttable struct {
	net.Conn
	cut *atomic.Bool
}

func (c cuttable) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.Load() {
		c.Close()
		return 0, io.EOF
	}
	return n, err
}

// workerOnWire is a worker whose wire to Redis can be cut.
func (r *rig) workerOnWire(name string, p Policy) (c *Coordinator, cut *atomic.Bool) {
	r.t.Helper()
	cut = new(atomic.Bool)
	rdb := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", DisableIdentity: true, Protocol: 2, MaxRetries: -1,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			if cut.Load() {
				return nil, errors.New("cut")
			}
			conn, err := redistest.Dial(r.mini)
			if err != nil {
				return nil, err
			}
			return cuttable{conn, cut}, nil
		},
	})
	c, err := New(rdb, p, Options{Account: "acme", Worker: name, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		r.t.Fatal(err)
	}
	r.ends = append(r.ends, func() { rdb.Close() })
	return c, cut
}

func TestASlotWhoseReleaseMayHaveBeenHeardIsNotUsedAlone(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 2}}}
		a, cut := r.workerOnWire("a", p)
		b := r.worker("b", p)
		defer b.Close()
		first := mustAcquire(t, a, "POST /chat")
		defer mustAcquire(t, b, "POST /chat").Release()
		time.Sleep(time.Second)
		cut.Store(true)
		first.Release()
		time.Sleep(3 * time.Second) // Redis has heard it, and a has not heard that it has
		defer mustAcquire(t, b, "POST /chat").Release()
		var full *WaitError
		if _, err := a.TryAcquire(context.Background(), Request{Endpoint: "POST /chat"}); !errors.As(err, &full) || full.Gate != GateSlots && full.Gate != GateAway {
			t.Errorf("error %v, want no slot: b has both", err)
		}
		cut.Store(false)
		a.Close()
	})
}

// Redis counts a lease's TTL from its last renewal, and gives the slot to others then.
func TestAWorkerThatIsCutOffUsesASlotNoLongerThanRedisKeepsIt(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		p := Policy{Limit: 600, LeaseTTL: 30 * time.Second, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}
		a, cut := r.workerOnWire("a", p)
		b := r.worker("b", p)
		defer b.Close()
		mustAcquire(t, a, "").Release()
		mustAcquire(t, b, "").Release()
		time.Sleep(15 * time.Second) // each knows of the other: the part of each is no slot
		held := mustAcquire(t, a, "POST /chat")
		time.Sleep(4900 * time.Millisecond) // a heartbeat is due in a moment, and fails
		cut.Store(true)
		lost := make(chan time.Duration, 1)
		begun := time.Now()
		go func() {
			<-held.Lost()
			lost <- time.Since(begun)
		}()
		mustAcquire(t, b, "POST /chat").Release() // not before the lease has ended
		select {
		case <-lost:
		default:
			t.Errorf("b has got the slot %v after the cut, and its holder has not been told", time.Since(begun))
		}
		cut.Store(false)
		a.Close()
	})
}
