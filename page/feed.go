package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/accountview"
)

// A feed looks at Redis for all who watch one account, as long as there are any. It
// keeps the latest of each kind of event, and nothing older: who is slow misses
// some, and memory is bounded. Page.mu guards it.
type feed struct {
	account string // empty: the first that there is
	viewers int
	stop    context.CancelFunc
	latest  map[string]event
	count   int           // events so far
	changed chan struct{} // closed at the next event
}

// An event is what the browser is told.
type event struct {
	number int
	data   []byte
}

// The kinds of events, in the order in which they are sent.
var kinds = []string{"trouble", "accounts", "account", "timeline"}

const (
	lookTimeout = 5 * time.Second
	keepAlive   = 15 * time.Second
	patience    = 10 * time.Second // for a viewer that does not read
	maxOverview = 50               // accounts in the list that are described
	slowly      = 5                // looks between two of the list of accounts
)

// join enters a viewer; leave must be called. Nil: there are too many.
func (p *Page) join(account string) (f *feed, leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers >= p.options.MaxViewers || p.ctx.Err() != nil {
		return nil, nil
	}
	f = p.feeds[account]
	if f == nil {
		f = &feed{account: account, latest: make(map[string]event), changed: make(chan struct{})}
		var ctx context.Context
		ctx, f.stop = context.WithCancel(p.ctx)
		p.feeds[account] = f
		p.looking.Go(func() { p.look(ctx, f) })
	}
	f.viewers++
	p.viewers++
	return f, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.viewers--
		if f.viewers--; f.viewers == 0 {
			f.stop()
			delete(p.feeds, account)
		}
	}
}

// look reads the account again and again.
func (p *Page) look(ctx context.Context, f *feed) {
	tick := time.NewTicker(p.options.Interval)
	defer tick.Stop()
	var v view
	for n := 0; ; n++ {
		err := p.lookOnce(ctx, f, n, &v)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.publish(f, "trouble", trouble{err.Error()})
		default:
			p.publish(f, "trouble", trouble{})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// A view is what a feed keeps from one look to the next.
type view struct {
	names []string
	jobs  []coordinator.Job
}

// A trouble is why nothing can be shown; empty: it can.
type trouble struct {
	Text string `json:"text"`
}

// A line is one account in the list.
type line struct {
	Account  string `json:"account"`
	Used     int    `json:"used"`
	Limit    int    `json:"limit"`
	Waiting  int    `json:"waiting"`
	Alive    int    `json:"alive"`
	Rejected int64  `json:"rejected"`
	Paused   bool   `json:"paused"`
}

func (p *Page) lookOnce(ctx context.Context, f *feed, n int, v *view) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if n%slowly == 0 {
		lines, err := p.overview(ctx, v)
		if err != nil {
			return err
		}
		p.publish(f, "accounts", lines)
	}
	account := f.account
	if account == "" && len(v.names) > 0 {
		account = v.names[0]
	}
	if account == "" {
		return nil
	}
	s, err := p.inspector.Account(ctx, account)
	if errors.Is(err, coordinator.ErrNoAccount) {
		p.publish(f, "account", nil)
		return nil
	}
	if err != nil {
		return err
	}
	if n%slowly == 0 {
		// Without the right to SCAN leases stand without their jobs.
		v.jobs, _ = p.inspector.Jobs(ctx, account)
	}
	p.publish(f, "account", accountview.Of(s, v.jobs))
	samples, err := p.inspector.Timeline(ctx, account)
	if err != nil {
		return err
	}
	p.publish(f, "timeline", pointsOf(samples))
	return nil
}

func (p *Page) overview(ctx context.Context, v *view) ([]line, error) {
	v.names = p.options.Accounts
	if len(v.names) == 0 {
		var err error
		if v.names, err = p.inspector.Accounts(ctx); err != nil {
			return nil, err
		}
	}
	lines := []line{}
	for _, name := range v.names[:min(len(v.names), maxOverview)] {
		s, err := p.inspector.Account(ctx, name)
		if errors.Is(err, coordinator.ErrNoAccount) {
			continue
		}
		if err != nil {
			return nil, err
		}
		waiting := s.Queued
		for _, e := range s.Endpoints {
			waiting = max(waiting, e.Waiting)
		}
		lines = append(lines, line{name, s.Used + s.Foreign, s.Limit, waiting, s.Alive, s.Rejected, s.Paused() > 0})
	}
	return lines, nil
}

// A point is what happened between two samples.
type point struct {
	AgoMS    int64 `json:"ago_ms"` // its end
	LengthMS int64 `json:"length_ms"`
	Admitted int64 `json:"admitted"` // requests
	Rejected int64 `json:"rejected"` // 429s
	Foreign  int   `json:"foreign"`  // requests of strangers in the window
	Waiting  int   `json:"waiting"`
	Paused   bool  `json:"paused"`
}

// pointsOf turns counters into what happened. A counter that falls back (Redis has
// lost its memory) says nothing, and neither does one that leaps.
func pointsOf(samples []coordinator.Sample) []point {
	points := []point{}
	for i := 1; i < len(samples); i++ {
		a, b := samples[i-1], samples[i]
		q := point{
			AgoMS: b.Ago.Milliseconds(), LengthMS: (a.Ago - b.Ago).Milliseconds(),
			Admitted: b.Granted - a.Granted, Rejected: b.Rejected - a.Rejected,
			Foreign: b.Foreign, Waiting: b.Waiting, Paused: b.Paused,
		}
		if q.LengthMS <= 0 || a.Ago > 11*time.Minute {
			continue
		}
		if q.Admitted < 0 || q.Admitted > 1e9 {
			q.Admitted = 0
		}
		q.Rejected = max(0, q.Rejected)
		points = append(points, q)
	}
	return points
}

func (p *Page) publish(f *feed, kind string, v any) {
	data, err := json.Marshal(v) // escapes <, > and &, and holds no line break
	if err != nil {
		data = []byte("null")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if string(f.latest[kind].data) == string(data) {
		return
	}
	f.count++
	f.latest[kind] = event{f.count, data}
	close(f.changed)
	f.changed = make(chan struct{})
}

// news returns the events after a number, and what to wait for if there are none.
func (p *Page) news(f *feed, after int) (text []byte, number int, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, kind := range kinds {
		if e, ok := f.latest[kind]; ok && e.number > after {
			text = fmt.Appendf(text, "event: %s\ndata: %s\n\n", kind, e.data)
		}
	}
	return text, f.count, f.changed
}

// serveEvents streams what changes.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) {
	account := r.URL.Query().Get("account")
	if account != "" && !p.shows(account) {
		http.Error(w, "There is no such account here.", http.StatusNotFound)
		return
	}
	f, leave := p.join(account)
	if f == nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "Too many are watching.", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	seen := 0
	text := []byte("retry: 2000\n\n")
	for {
		more, number, changed := p.news(f, seen)
		text, seen = append(text, more...), number
		if len(text) > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(patience)) // where it is not supported, the server's own hold
			if _, err := w.Write(text); err != nil || control.Flush() != nil {
				return
			}
			text = text[:0]
		}
		select {
		case <-changed:
		case <-alive.C:
			text = append(text, ": still here\n\n"...)
		case <-r.Context().Done():
			return
		case <-p.ctx.Done():
			return
		}
	}
}

// shows says whether an account may be asked for.
func (p *Page) shows(account string) bool {
	if len(p.options.Accounts) == 0 {
		return len(account) <= 128
	}
	for _, name := range p.options.Accounts {
		if name == account {
			return true
		}
	}
	return false
}
