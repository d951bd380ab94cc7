package coordinator

import (
	"context"
	"errors"
	"testing"
	"time"
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
