package mockapi

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPipeServesAnyHandlerUntilClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ServePipe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte(r.URL.Path))
		}))
		client := l.Client()
		resp, err := client.Get("http://anything.test/x")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		l.Close()
		l.Close()
		if _, err := client.Get("http://anything.test/x"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error after Close: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.DialContext(ctx, "tcp", "x:80"); err == nil {
			t.Error("a closed listener was dialled")
		}
	})
}

func TestListenOnAClosedAPIServesNothing(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		r.Close()
		if _, err := r.Listen().Client().Get(r.url); err == nil {
			t.Error("served")
		}
	})
}

func TestCloseBreaksOffCallsInFlight(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		var calls sync.WaitGroup
		for i := range 20 {
			body := []string{`{}`, `{"stream":true}`}[i%2]
			what := []string{PostMaveChat, PostFocusGroups}[i%2]
			calls.Go(func() {
				if got := r.do(what, body); got.status == 200 && got.err == nil {
					t.Errorf("%s: answered", what)
				}
			})
		}
		r.stranger(Stranger{Fraction: 0.1})
		r.at(10 * time.Second)
		r.Close()
		calls.Wait()
		r.expect("end", r.Since(), 10*time.Second)
		for pattern, n := range r.Stats().InFlight {
			r.expect("in flight of "+pattern, n, 0)
		}
	})
}

// A quarter of an hour of a fleet that ignores every limit: the judge's sums must agree
// with each other and with what the clients saw.
func TestBooksBalanceUnderARecklessFleet(t *testing.T) {
	cfg := Config{Limit: 300, Seed: 11, TimeScale: 0.1, CountRejected: true, JobFailures: 0.2, Faults: []Fault{
		{Kind: FaultError, Probability: 0.01}, {Kind: FaultError, Status: 503, RetryAfter: time.Second, Probability: 0.01},
		{Kind: FaultSurprise429, Probability: 0.01, RetryAfter: 2 * time.Second}, {Kind: FaultCut, Probability: 0.01},
		{Kind: FaultCutAfter, Probability: 0.01}, {Kind: FaultHang, Probability: 0.01, Duration: 20 * time.Second},
	}}
	for _, mode := range []Mode{Sliding, Fixed} {
		cfg.Mode = mode
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			r.stranger(Stranger{Burst: 30, Every: 45 * time.Second})
			var mu sync.Mutex
			seen := map[int]int64{}
			var fleet sync.WaitGroup
			for i := range 12 {
				rng := rand.New(rand.NewPCG(uint64(i), 9))
				fleet.Go(func() {
					for r.Since() < 15*time.Minute {
						time.Sleep(time.Duration(rng.ExpFloat64() * float64(4*time.Second)))
						ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
						// No GET: http.Transport repeats one whose connection is cut.
						what := []string{PostResponses, PostMaveChat, PostVideoAnalyses, PostGenerations}[rng.IntN(4)]
						got := r.doCtx(ctx, testKey, what, []string{`{}`, `{"stream":true}`}[rng.IntN(2)])
						cancel()
						mu.Lock()
						seen[got.status]++
						mu.Unlock()
					}
				})
			}
			fleet.Wait()
			time.Sleep(time.Hour)
			s := r.Stats()
			r.expect("429s seen", s.Responses429, seen[429])
			r.expect("429s in sum", s.Responses429, s.LimitViolations+s.SlotViolations+s.Unavoidable429+s.Surprise429)
			r.expect("all seen", s.Requests, seen[0]+seen[200]+seen[429]+seen[500]+seen[503])
			if s.SlotViolations == 0 || s.PauseViolations == 0 || s.Canceled == 0 || s.StrangerAccepted == 0 {
				t.Errorf("the fleet was not reckless: %+v", s)
			}
			for pattern, n := range s.InFlight {
				r.expect("in flight of "+pattern, n, 0)
			}
			for e := range endpoints {
				if most := s.MaxInFlight[e.String()]; mavera[e].slots > 0 && most > mavera[e].slots {
					t.Errorf("%d in flight on %s", most, e)
				}
			}
			if mode == Sliding && s.MaxInWindow > 300 {
				t.Errorf("%d accepted in a window", s.MaxInWindow)
			}
		})
	}
}

// In real time and under the race detector: a handler without a server.
func TestConcurrentUse(t *testing.T) {
	a, err := New(Config{Limit: 500, NoLatency: true, JobDuration: Range{time.Microsecond, time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	stop, err := a.StartStranger(Stranger{Fraction: 100})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 200 {
				what := []string{"/responses", "/mave/chat", "/video-analyses", "/_stats"}[n%4]
				method := []string{"POST", "POST", "POST", "GET"}[n%4]
				req := httptest.NewRequest(method, what, strings.NewReader("{}"))
				req.Header.Set("Authorization", "Bearer mvra_"+string(rune('a'+i%3)))
				a.ServeHTTP(httptest.NewRecorder(), req)
				if n%50 == 0 {
					a.SetLimit(400 + n)
					a.Inject(Fault{Kind: FaultError, Count: 2})
					a.Utilization(0, time.Minute)
				}
			}
		})
	}
	all.Wait()
	stop()
	s := a.Stats()
	if s.Requests != 8*150 || s.Keys != 3 {
		t.Errorf("%d requests of %d keys, want 1200 of 3", s.Requests, s.Keys)
	}
	a.Close()
	a.Close()
}

// Over a real socket, as the demo serves it.
func TestOverLoopback(t *testing.T) {
	hung := make(chan bool, 1)
	a, err := New(Config{NoLatency: true, FaultFunc: func(endpoint string, _ int64) (Fault, bool) {
		if endpoint == PostFocusGroups {
			hung <- true
			return Fault{Kind: FaultHang}, true
		}
		return Fault{}, false
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	server := httptest.NewServer(a)
	r := &rig{API: a, t: t, client: server.Client(), url: server.URL}
	r.expect("control from loopback", r.do("POST /_control", `{"tier":"basic"}`).body["limit"], 120.)
	for _, body := range []string{`{}`, `{"stream":true}`} {
		got := r.do(PostMaveChat, body)
		r.expect("status", got.status, 200)
		r.expect("limit", got.int("X-RateLimit-Limit"), 120)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hung; cancel() }()
	if got := r.doCtx(ctx, testKey, PostFocusGroups, "{}"); got.err == nil {
		t.Error("a hung call was answered")
	}
	server.Close() // returns when every call has ended
	r.expect("in flight", a.Stats().InFlight[PostFocusGroups], 0)
}

func BenchmarkRequest(b *testing.B) {
	a, err := New(Config{Limit: 1 << 20, NoLatency: true})
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	req := httptest.NewRequest("GET", "/personas", nil)
	req.Header.Set("Authorization", "Bearer "+testKey)
	for b.Loop() {
		a.ServeHTTP(httptest.NewRecorder(), req)
	}
}
