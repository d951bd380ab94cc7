package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// A worker is one process of the fleet: it takes items, carries each out in a
// goroutine of its own through the fleet's transport, and reports.
//
// It asks for another item as soon as one is admitted, so that a fixed number of
// callers always wait for admission at each endpoint: however slow the API, the
// budget never lies idle for want of a caller, and those who wait for a chat's
// slot keep nobody from the rest.
type worker struct {
	http    *http.Client
	base    string // URL without a slash at its end
	key     string
	profile client.Profile
	policy  coordinator.Policy

	mu  sync.Mutex
	out *json.Encoder
}

// connections are a worker's ways to Redis and to the API.
type connections struct {
	redis redis.UniversalClient
	api   http.RoundTripper
}

var errStdinClosed = errors.New("the work has ended")

// work serves a parent until in ends, and returns nil then.
func work(ctx context.Context, in io.Reader, out io.Writer, connect func(setup) (connections, error), log *slog.Logger) error {
	inbox := json.NewDecoder(in)
	var s setup
	if err := inbox.Decode(&s); err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	conns, err := connect(s)
	if err != nil {
		return err
	}
	defer conns.redis.Close()
	c, err := coordinator.New(conns.redis, s.Plan.policy(), coordinator.Options{APIKey: s.Key, Worker: s.Worker, Logger: log})
	if err != nil {
		return err
	}
	defer c.Close() // what it could not give back ends by itself

	w := &worker{
		base: strings.TrimSuffix(s.Upstream, "/"), key: s.Key, policy: c.Policy(),
		profile: profileFor(s.Upstream), out: json.NewEncoder(out),
	}
	transport, err := client.New(c, w.profile, client.Options{Base: witness{conns.api, w}})
	if err != nil {
		return err
	}
	w.http = transport.Client()
	defer w.http.CloseIdleConnections()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.report(report{Kind: ready})
	for endpoint, n := range s.Callers {
		w.report(report{Kind: want, Endpoint: endpoint, N: n})
	}
	items := make(chan item)
	go func() {
		defer cancel(errStdinClosed)
		for {
			var it item
			if inbox.Decode(&it) != nil {
				return
			}
			select {
			case items <- it:
			case <-ctx.Done():
				return
			}
		}
	}()
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		select {
		case it := <-items:
			calls.Go(func() { w.carryOut(ctx, it) })
		case <-ctx.Done():
			return nil
		}
	}
}

// profileFor is Mavera's profile for an API that is served at the URL.
func profileFor(upstream string) client.Profile {
	p := mavera.Profile()
	p.BasePath = ""
	if u, err := url.Parse(upstream); err == nil {
		p.BasePath = strings.TrimSuffix(u.Path, "/")
	}
	return p
}

// report writes one line to the parent. Without a parent there is nobody to
// tell of an error, and stdin ends as well.
func (w *worker) report(r report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.out.Encode(r)
}

// A call is an item on its way.
type call struct {
	item  item
	begun time.Time

	mu   sync.Mutex
	sent bool // a request of it has gone out
	poll bool // it is waiting for a job
}

type callKey struct{}

func (w *worker) carryOut(ctx context.Context, it item) {
	c := &call{item: it, begun: time.Now()}
	err := w.do(context.WithValue(ctx, callKey{}, c), c)
	end := report{Kind: done, Item: it.ID}
	if err != nil {
		end.Error = w.hideKey(err.Error())
	}
	c.mu.Lock()
	end.Again = c.sent
	c.mu.Unlock()
	if !end.Again {
		w.report(report{Kind: want, Endpoint: it.Endpoint, N: 1})
	}
	w.report(end)
}

func (w *worker) hideKey(s string) string {
	if w.key == "" {
		return s
	}
	return strings.ReplaceAll(s, w.key, "***")
}

// A witness tells the parent when a request goes out and what came back: it sits
// below the fleet's transport, where the network begins.
type witness struct {
	next   http.RoundTripper
	worker *worker
}

func (t witness) RoundTrip(req *http.Request) (*http.Response, error) {
	c, ok := req.Context().Value(callKey{}).(*call)
	if !ok {
		return t.next.RoundTrip(req)
	}
	c.mu.Lock()
	r := report{Kind: sent, Item: c.item.ID, Endpoint: c.item.Endpoint, Poll: c.poll, Again: c.sent, Waited: time.Since(c.begun)}
	c.sent = true
	c.mu.Unlock()
	t.worker.report(r)
	if !r.Again {
		t.worker.report(report{Kind: want, Endpoint: r.Endpoint, N: 1})
	}
	resp, err := t.next.RoundTrip(req)
	r.Kind, r.Waited = answered, 0
	if err == nil {
		r.Status = resp.StatusCode
	}
	t.worker.report(r)
	return resp, err
}

func (t witness) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
