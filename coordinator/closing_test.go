package coordinator

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// What is granted while the coordinator is being closed goes back, though nobody sends the
// outbox any more: the slot of a job would stay taken for as long as a job may last.
func TestWhatIsGrantedDuringCloseGoesBack(t *testing.T) {
	for name, c := range map[string]struct {
		ask   func(*Coordinator) (*Permit, error)
		pause time.Duration // for which Redis answers nothing
	}{
		"TryAcquire": {func(c *Coordinator) (*Permit, error) {
			return c.TryAcquire(context.Background(), Request{Endpoint: video})
		}, time.Second},
		"Acquire, after Close has given up": {func(c *Coordinator) (*Permit, error) {
			return c.Acquire(context.Background(), Request{Endpoint: video})
		}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				p := Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: video, Slots: 2, JobTTL: time.Hour}}}
				closing, other := r.worker("a", p), r.worker("b", p)
				mustAcquire(t, closing, "")
				mustAcquire(t, other, "")
				time.Sleep(11 * time.Second)
				resume := r.hold()
				asked := make(chan error)
				go func() {
					_, err := c.ask(closing)
					asked <- err
				}()
				time.Sleep(time.Millisecond)
				closed := make(chan struct{})
				go func() {
					closing.Close()
					close(closed)
				}()
				time.Sleep(c.pause)
				resume()
				if err := <-asked; !errors.Is(err, ErrClosed) {
					t.Errorf("error %v, want ErrClosed", err)
				}
				<-closed
				time.Sleep(time.Second)
				if s, err := other.State(context.Background()); err != nil || s.Endpoints[0].InUse != 0 || s.Used != 2 {
					t.Errorf("%d slots and %d requests in use, %v; want none, and the two that were used", s.Endpoints[0].InUse, s.Used, err)
				}
				closeAll(t, other)
			})
		})
	}
}

// lateWire has the next command arrive late, whatever becomes of who has sent it.
type lateWire struct {
	commandsOnly
	late atomic.Bool
}

func (w *lateWire) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if w.late.Swap(false) {
			time.Sleep(300 * time.Millisecond)
			ctx = context.WithoutCancel(ctx)
		}
		return next(ctx, cmd)
	}
}

// Nothing of a worker reaches Redis after Close has returned: a heartbeat, or a look at the
// account, that was under way would count it as alive again, or bring back an account that
// was deleted.
func TestNothingComesAfterClose(t *testing.T) {
	for what, begin := range map[string]func(*rig, *Coordinator){
		"heartbeat": func(*rig, *Coordinator) { time.Sleep(10*time.Second - 400*time.Millisecond) },
		"look": func(r *rig, c *Coordinator) {
			time.Sleep(5 * time.Second)
			r.mini.Publish(c.keys.wakeAll(), callLook)
		},
	} {
		t.Run(what, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				rdb, wire := r.client(), new(lateWire)
				defer rdb.Close()
				rdb.AddHook(wire)
				c := r.begin(rdb, Policy{Limit: 600, Headroom: 1}, Options{Worker: "a"})
				mustAcquire(t, c, "")
				time.Sleep(20*time.Second + 200*time.Millisecond)
				wire.late.Store(true)
				begin(r, c)
				time.Sleep(250 * time.Millisecond)
				closeAll(t, c)
				r.mini.FlushAll()
				time.Sleep(5 * time.Second)
				if keys := r.mini.Keys(); len(keys) > 0 {
					t.Errorf("after Close came what left %q", keys)
				}
			})
		})
	}
}
