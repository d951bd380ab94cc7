package coordinator

import (
	"context"
	"log/slog"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A rig is a Redis in memory whose clock is that of the synctest bubble.
type rig struct {
	t    *testing.T
	mini *miniredis.Miniredis
	rdb  *redis.Client
	ends []func() // at the end of the test

	workers []*Coordinator
}

// patience is how long, in virtual time, a test waits for what must come, which is longer
// than anything in a test lasts: where it does not come the test fails, and does not hang.
const patience = 2 * time.Hour

// inVirtualTime runs a test in a bubble: hours pass in milliseconds, and every
// goroutine must have ended when the test does.
func inVirtualTime(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		mini.ClockTTL(true)
		r := &rig{t: t, mini: mini}
		r.rdb = r.client()
		through := false
		defer func() {
			if through || t.Failed() { // after a panic a mutex may be locked
				r.end()
			}
		}()
		test(t, r)
		through = true
	})
}

// end ends what a test has begun. Workers that it has not closed have seen it fail.
func (r *rig) end() {
	for _, c := range r.workers {
		c.Close()
	}
	for _, end := range r.ends {
		end()
	}
	r.rdb.Close()
	r.mini.Close()
	// go-redis notices a closed subscription after its retry delay, and a closed pool
	// that it cannot dial when it next tries, a second later.
	time.Sleep(2 * time.Second)
}

// client returns a connection pool of its own, as another process would have.
func (r *rig) client() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379",
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return redistest.Dial(r.mini)
		},
		DisableIdentity: true,
		Protocol:        2,
	})
}

func (r *rig) worker(name string, p Policy) *Coordinator {
	r.t.Helper()
	return r.begin(r.rdb, p, Options{Worker: name})
}

// begin makes a worker of the account acme that says nothing and ends with the test.
func (r *rig) begin(rdb redis.UniversalClient, p Policy, o Options) *Coordinator {
	r.t.Helper()
	o.Account, o.Logger = "acme", slog.New(slog.DiscardHandler)
	c, err := New(rdb, p, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.workers = append(r.workers, c)
	return c
}

// commandsOnly is the part of a hook that concerns no single command: nothing.
type commandsOnly struct{}

func (commandsOnly) DialHook(next redis.DialHook) redis.DialHook { return next }

func (commandsOnly) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func mustAcquire(t *testing.T, c *Coordinator, endpoint string) *Permit {
	t.Helper()
	ctx, cancel := within(patience)
	defer cancel()
	p, err := c.Acquire(ctx, Request{Endpoint: endpoint})
	if err != nil {
		t.Fatalf("Acquire(%q): %v", endpoint, err)
	}
	return p
}

// awaitLost waits until the lease of a permit is lost.
func awaitLost(t *testing.T, p *Permit) {
	t.Helper()
	select {
	case <-p.Lost():
	case <-time.After(patience):
		t.Fatalf("a lease of %q is held after %v, want it lost", p.lane.name, patience)
	}
}

func TestMain(m *testing.M) {
	redis.SetLogger(silence{}) // go-redis tells of every connection that a test cuts
	os.Exit(m.Run())
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}
