package coordinator

import (
	"context"
	"io"
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
}

// inVirtualTime runs a test in a bubble: hours pass in milliseconds, and every
// goroutine must have ended when the test does.
func inVirtualTime(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		mini.ClockTTL(true)
		r := &rig{t: t, mini: mini}
		r.rdb = r.client()
		test(t, r)
		for _, end := range r.ends {
			end()
		}
		r.rdb.Close()
		mini.Close()
		// go-redis notices a closed subscription after its retry delay, and a closed pool
		// that it cannot dial when it next tries, a second later.
		time.Sleep(2 * time.Second)
	})
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
	c, err := New(r.rdb, p, Options{Account: "acme", Worker: name, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func mustAcquire(t *testing.T, c *Coordinator, endpoint string) *Permit {
	t.Helper()
	p, err := c.Acquire(context.Background(), Request{Endpoint: endpoint})
	if err != nil {
		t.Fatalf("Acquire(%q): %v", endpoint, err)
	}
	return p
}

func TestMain(m *testing.M) {
	redis.SetLogger(silence{}) // go-redis tells of every connection that a test cuts
	os.Exit(m.Run())
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}
