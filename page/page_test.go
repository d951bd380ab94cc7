package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

const chat = "POST /mave/chat"

// A stage is a Redis in memory with a page about it.
type stage struct {
	mini *miniredis.Miniredis
	rdb  *redis.Client
	page *Page
	url  string
}

func newStage(t *testing.T, o Options) *stage {
	t.Helper()
	mini := miniredis.RunT(t)
	mini.ClockTTL(true)
	s := &stage{mini: mini, rdb: redis.NewClient(&redis.Options{Addr: mini.Addr()})}
	t.Cleanup(func() { s.rdb.Close() })
	if o.Interval == 0 {
		o.Interval = 100 * time.Millisecond
	}
	var err error
	if s.page, err = New(s.rdb, o); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.page)
	t.Cleanup(server.Close)
	t.Cleanup(s.page.Close)
	s.url = server.URL
	return s
}

func (s *stage) worker(t *testing.T, account, name string) *coordinator.Coordinator {
	t.Helper()
	c, err := coordinator.New(s.rdb, coordinator.Policy{
		Limit: 240, Headroom: 1, LeaseTTL: 30 * time.Second,
		Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 2}},
	}, coordinator.Options{Account: account, APIKey: "mvra_live_secret", Worker: name, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *stage) acquire(t *testing.T, c *coordinator.Coordinator) *coordinator.Permit {
	t.Helper()
	p, err := c.Acquire(t.Context(), coordinator.Request{Endpoint: chat})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// get asks the page's handler, with a Host header.
func (s *stage) get(t *testing.T, method, path, host string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestOnlyExpectedHostsAreAnswered_DNSRebinding(t *testing.T) {
	s := newStage(t, Options{Hosts: []string{"Fleet.example"}})
	for host, want := range map[string]int{
		"localhost": 200, "localhost:8080": 200, "fleet.localhost": 200, "127.0.0.1:1": 200, "[::1]:80": 200, "127.9.9.9": 200,
		"fleet.example": 200, "fleet.example:443": 200,
		"evil.example": 421, "localhost.evil.example": 421, "10.0.0.1": 421, "127.0.0.1.evil.example:80": 421, "[2001:db8::1]": 421, "0.0.0.0": 421,
	} {
		for _, path := range []string{"/", "/page.js", "/events"} {
			ctx, cancel := context.WithCancel(t.Context())
			req := httptest.NewRequestWithContext(ctx, "HEAD", path, nil)
			req.Host = host
			w := httptest.NewRecorder()
			s.page.ServeHTTP(w, req)
			cancel()
			if w.Code != want {
				t.Errorf("Host %s, %s: status %d, want %d", host, path, w.Code, want)
			}
		}
	}
}

func TestThePageOnlyShows(t *testing.T) {
	s := newStage(t, Options{})
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		if r := s.get(t, method, "/", "localhost"); r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", method, r.StatusCode)
		}
	}
	r := s.get(t, "GET", "/", "localhost")
	text, _ := io.ReadAll(r.Body)
	if csp := r.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
	for _, inline := range []string{"<script>", "<style", " style=", " onclick=", "http://", "https://"} {
		if strings.Contains(string(text), inline) {
			t.Errorf("the page holds %q", inline)
		}
	}
	if r := s.get(t, "GET", "/static/index.html", "localhost"); r.StatusCode != 404 {
		t.Errorf("a file that is not served: %d", r.StatusCode)
	}
}

func TestLoopbackUnlessAskedOtherwise(t *testing.T) {
	var bad *coordinator.ConfigError
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "nonsense"} {
		if l, err := Listen(addr, false); !errors.As(err, &bad) {
			if err == nil {
				l.Close()
			}
			t.Errorf("Listen(%q): %v", addr, err)
		}
	}
	for addr, anywhere := range map[string]bool{"127.0.0.1:0": false, "localhost:0": false, "0.0.0.0:0": true} {
		l, err := Listen(addr, anywhere)
		if err != nil {
			t.Errorf("Listen(%q): %v", addr, err)
			continue
		}
		l.Close()
	}
}

// events reads the stream until one of the kind holds the text.
func (s *stage) events(t *testing.T, query, kind, text string) string {
	t.Helper()
	r := s.get(t, "GET", "/events"+query, "localhost")
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("status %d, %v", r.StatusCode, r.Header)
	}
	lines, of := bufio.NewScanner(r.Body), ""
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if e, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			of = e
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && of == kind && strings.Contains(data, text) {
			return data
		}
	}
	t.Fatalf("the stream ended without %q: %v", text, lines.Err())
	return ""
}

func TestTheStreamTellsWhatHappens(t *testing.T) {
	s := newStage(t, Options{})
	w1 := s.worker(t, "acme", "w1")
	s.acquire(t, w1)
	s.events(t, "", "account", `"held_ms"`)
	s.events(t, "?account=acme", "account", `"worker":"w1"`)
	s.events(t, "?account=nobody", "account", "null")
	s.mini.SetError("ERR it is broken")
	s.events(t, "", "trouble", "it is broken")
	s.mini.SetError("")
	s.events(t, "", "trouble", `{"text":""}`)
}

func TestNoTextIsMarkupAndNoKeyIsShown(t *testing.T) {
	s := newStage(t, Options{})
	s.acquire(t, s.worker(t, "acme", "w1"))
	s.mini.HSet("fleetlimit:{acme}:backoff", "hold_until_ms", fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()),
		"hold_ms", "3600000", "hold_by", "</script><b>", "hold_reason", "a\nevent: x\x00\u202e")
	data := s.events(t, "", "account", `"hold"`)
	if strings.ContainsAny(data, "<>\x00\u202e") || strings.Contains(data, "mvra_live") {
		t.Errorf("the stream holds %s", data)
	}
}

func TestNobodyLooksAtRedisWhenNobodyWatches(t *testing.T) {
	s := newStage(t, Options{MaxViewers: 2})
	s.acquire(t, s.worker(t, "acme", "w1"))
	leave := make([]func(), 2)
	var f, g *feed
	f, leave[0] = s.page.join("acme")
	g, leave[1] = s.page.join("acme")
	if f == nil || f != g {
		t.Error("two viewers of an account have two feeds")
	}
	if f, _ := s.page.join("acme"); f != nil {
		t.Error("more viewers than allowed")
	}
	if r := s.get(t, "GET", "/events", "localhost"); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d", r.StatusCode)
	}
	leave[0]()
	leave[1]()
	s.page.looking.Wait()
	if len(s.page.feeds) != 0 {
		t.Error("a feed goes on")
	}
	s.page.Close()
	s.page.Close()
	if f, _ := s.page.join("acme"); f != nil {
		t.Error("a closed page is watched")
	}
}

func TestOnlyTheAccountsThatAreMeant(t *testing.T) {
	s := newStage(t, Options{Accounts: []string{"acme"}})
	s.acquire(t, s.worker(t, "acme", "w1"))
	s.acquire(t, s.worker(t, "secret", "w1"))
	if data := s.events(t, "", "accounts", "acme"); strings.Contains(data, "secret") {
		t.Errorf("accounts %s", data)
	}
	if r := s.get(t, "GET", "/events?account=secret", "localhost"); r.StatusCode != 404 {
		t.Errorf("status %d", r.StatusCode)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{})
	defer rdb.Close()
	var bad *coordinator.ConfigError
	for _, o := range []Options{{Interval: time.Millisecond}, {MaxViewers: -1}} {
		if _, err := New(rdb, o); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := New(nil, Options{}); !errors.As(err, &bad) {
		t.Errorf("no client: %v", err)
	}
}

func TestCountersBecomeWhatHappened(t *testing.T) {
	got := pointsOf([]coordinator.Sample{
		{Ago: 20 * time.Second, Granted: 100, Rejected: 1}, {Ago: 15 * time.Second, Granted: 120, Rejected: 3, Waiting: 2},
		{Ago: 10 * time.Second, Granted: 5, Rejected: 0}, {Ago: 5 * time.Second, Granted: 1_700_000_000_000},
	})
	want := []point{
		{AgoMS: 15000, LengthMS: 5000, Admitted: 20, Rejected: 2, Waiting: 2},
		{AgoMS: 10000, LengthMS: 5000}, {AgoMS: 5000, LengthMS: 5000},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMain(m *testing.M) {
	redis.SetLogger(silence{})
	os.Exit(m.Run())
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}
