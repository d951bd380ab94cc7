package coordinator

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A lossyWire loses one reply: the server has heard and done what it was told, and the
// connection breaks before the answer is there.
type lossyWire struct {
	mu    sync.Mutex
	lose  bool // the next reply is lost
	lost  int
	conns []net.Conn
}

func (w *lossyWire) loseNext() {
	w.mu.Lock()
	w.lose = true
	w.mu.Unlock()
}

func (w *lossyWire) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// closeAll is a server, or something in between, that closes what has been idle.
func (w *lossyWire) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

type lossyConn struct {
	net.Conn
	wire *lossyWire
}

func (c lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	if c.wire.lose && n > 0 {
		c.wire.lose = false
		c.wire.lost++
		c.Conn.Close()
		return 0, io.EOF
	}
	return n, err
}

// workerOnLossyWire is a worker with a client as anybody makes it, retries and all. Its
// heartbeats are rare, so that they do not lose the reply that a test means.
func (r *rig) workerOnLossyWire(name string, p Policy, e Events) (*Coordinator, *lossyWire) {
	r.t.Helper()
	wire := &lossyWire{}
	rdb := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", DisableIdentity: true, Protocol: 2,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			conn, err := r.mini.Dial()
			if err != nil {
				return nil, err
			}
			wire.mu.Lock()
			defer wire.mu.Unlock()
			wire.conns = append(wire.conns, conn)
			return lossyConn{conn, wire}, nil
		},
	})
	r.t.Cleanup(func() { rdb.Close() })
	if p.LeaseTTL == 0 {
		p.LeaseTTL = time.Hour
	}
	own := r.rdb
	r.rdb = rdb
	defer func() { r.rdb = own }()
	return r.workerWith(name, p, e), wire
}

// noOutage fails the test if the worker takes Redis to be away.
func noOutage(t *testing.T) Events {
	return Events{Degraded: func(d Degradation) { t.Errorf("Redis is taken to be away: %v", d.Err) }}
}

// used is how many requests the account counts in the window.
func (r *rig) used(c *Coordinator) int {
	r.t.Helper()
	s, err := NewInspector(r.rdb).Account(context.Background(), c.Account())
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Used
}

func TestALostReplyReturnsNothingTwice(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, wire := r.workerOnLossyWire("a", Policy{Limit: 60, Headroom: 1, Burst: 60}, noOutage(t))
		var permits []*Permit
		for range 10 {
			permits = append(permits, mustAcquire(t, c, ""))
		}
		time.Sleep(time.Second) // the first heartbeat is over
		wire.loseNext()
		permits[0].Return()
		time.Sleep(5 * time.Second)
		if wire.count() != 1 {
			t.Fatalf("%d replies were lost, want 1", wire.count())
		}
		if used := r.used(c); used != 9 {
			t.Errorf("%d requests are counted, want 9: one of ten was not sent", used)
		}
		closeAll(t, c)
	})
}

func TestALostReplyToAnAdmissionIsCounted(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, wire := r.workerOnLossyWire("a", Policy{Limit: 60, Headroom: 1, Burst: 60}, noOutage(t))
		mustAcquire(t, c, "").Release()
		time.Sleep(time.Second) // the first heartbeat is over
		wire.loseNext()
		mustAcquire(t, c, "").Release() // no error
		if used := r.used(c); wire.count() != 1 || used != 3 {
			t.Errorf("%d requests are counted and %d replies lost, want 3 and 1: of the lost one nobody knows that it was granted", used, wire.count())
		}
		closeAll(t, c)
	})
}

// A connection that was closed while it was idle says nothing about Redis. (Where go-redis
// can ask the operating system it finds out before; with TLS, and here, it cannot.)
func TestAConnectionThatWasClosedWhileIdleIsNoOutage(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c, wire := r.workerOnLossyWire("a", Policy{Limit: 60, Headroom: 1, Burst: 60}, noOutage(t))
		mustAcquire(t, c, "").Release()
		for range 3 {
			time.Sleep(10 * time.Second)
			wire.closeAll()
			time.Sleep(10 * time.Second)
			mustAcquire(t, c, "").Release()
			if p, err := c.TryAcquire(context.Background(), Request{}); err != nil {
				t.Errorf("TryAcquire: %v", err)
			} else {
				p.Release()
			}
		}
		closeAll(t, c)
	})
}
