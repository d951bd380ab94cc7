package fleetsim

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Oracle is the upper bound: it sees the API's own state, knows how long each
// request will travel, and lets every request arrive at the first legal instant,
// in the order in which they were wished for.
var Oracle = Strategy{"oracle", func(p *Process) (Guard, error) {
	o := p.World.Shared("oracle", func() any { return newOracle(p.World) }).(*oracle)
	return newReactive(p, door{o, p.Base}), nil
}}

// oracle is one for the whole fleet.
type oracle struct {
	world *World

	mu      sync.Mutex
	waiting []*seeker // oldest first
	// sent is how many requests were let go, by endpoint. Those that the API has
	// not counted as arrived are under way.
	sent  map[string]int64
	timer *time.Timer
}

// A seeker waits for its turn at an endpoint.
type seeker struct {
	endpoint string
	granted  chan struct{}
}

func newOracle(w *World) *oracle {
	o := &oracle{world: w, sent: make(map[string]int64)}
	for _, l := range w.scenario.Fleet.Loads {
		o.sent[l.Endpoint] = 0
		if l.Endpoint == mockapi.PostVideoAnalyses {
			o.sent[mockapi.GetVideoAnalysis] = 0
		}
	}
	return o
}

// lookAgain is how soon the oracle looks again when it cannot know when there will
// be room: a tier may rise, or a stranger stay away.
const lookAgain = 100 * time.Millisecond

// serve lets all go for whom there is room.
func (o *oracle) serve() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) == 0 {
		return
	}
	rooms := make(map[string]*mockapi.Room, len(o.sent))
	budget, next := 1<<30, lookAgain
	var underWay int64
	for endpoint, sent := range o.sent {
		r := o.world.Upstream.Room(apiKey, endpoint)
		underWay += sent - r.Arrived
		r.Slots -= int(sent - r.Arrived)
		budget = min(budget, r.Budget)
		if r.Next > 0 {
			next = min(next, r.Next)
		}
		rooms[endpoint] = &r
	}
	budget -= int(underWay)
	o.waiting = slices.DeleteFunc(o.waiting, func(s *seeker) bool {
		if budget <= 0 || rooms[s.endpoint].Slots <= 0 {
			return false
		}
		budget--
		rooms[s.endpoint].Slots--
		o.sent[s.endpoint]++
		close(s.granted)
		return true
	})
	if len(o.waiting) == 0 {
		return
	}
	if o.timer == nil {
		o.timer = time.AfterFunc(next, o.serve)
	} else {
		o.timer.Reset(next)
	}
}

// seek waits for a turn.
func (o *oracle) seek(ctx context.Context, endpoint string) error {
	s := &seeker{endpoint, make(chan struct{})}
	o.mu.Lock()
	o.waiting = append(o.waiting, s)
	o.mu.Unlock()
	o.serve()
	select {
	case <-s.granted:
		return nil
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	before := len(o.waiting)
	o.waiting = slices.DeleteFunc(o.waiting, func(other *seeker) bool { return other == s })
	if len(o.waiting) == before { // it was let go at the same moment
		o.sent[endpoint]--
	}
	return context.Cause(ctx)
}

// never tells that a request that was let go did not arrive.
func (o *oracle) never(endpoint string) {
	o.mu.Lock()
	o.sent[endpoint]--
	o.mu.Unlock()
	o.serve()
}

// door is the oracle at one process.
type door struct {
	oracle *oracle
	base   http.RoundTripper
}

func (d door) RoundTrip(req *http.Request) (*http.Response, error) {
	endpoint := patternOf(req)
	if err := d.oracle.seek(req.Context(), endpoint); err != nil {
		return nil, err
	}
	number := -1
	resp, err := d.base.RoundTrip(req.WithContext(omniscient(req.Context(), &number)))
	if err != nil {
		if !d.oracle.world.attempts.arrived(number) {
			d.oracle.never(endpoint)
		}
		return nil, err
	}
	resp.Body = &whenClosed{ReadCloser: resp.Body, do: d.oracle.serve}
	return resp, nil
}

// whenClosed does something once, when a body is closed.
type whenClosed struct {
	io.ReadCloser
	once sync.Once
	do   func()
}

func (b *whenClosed) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.do)
	return err
}
