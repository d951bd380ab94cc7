// Package page is a live page about the accounts in a Redis: how full the window is,
// who holds which slots since when, who waits and behind which gate, pauses with
// their cause, the last ten minutes, and all workers.
//
// Any process that has a Redis client can mount it:
//
//	live, err := page.New(rdb, page.Options{})
//	listener, err := page.Listen("127.0.0.1:8080", false)
//	http.Serve(listener, live)
//
// Under a path, strip it: mux.Handle("/fleet/", http.StripPrefix("/fleet", live)).
//
// The page only reads, and needs nothing from elsewhere: HTML, style and script are
// in the binary, and nothing is inline. Whoever can open it can see the names of
// accounts, workers and jobs, never an API key, which is not in Redis. There is no
// password: it is meant for loopback, or to stand behind a proxy that asks for one.
package page

import (
	"context"
	"embed"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

//go:embed static
var static embed.FS

// Options changes how a page behaves. The zero value works.
type Options struct {
	// Accounts lists the accounts to show. Default: all in this Redis, which needs
	// the right to SCAN.
	Accounts []string

	// Interval is the time between two looks at Redis while somebody watches, at
	// least 100 ms. All viewers of an account share one look. Default: one second.
	Interval time.Duration

	// Hosts lists the names in requests' Host headers that are answered besides
	// localhost and loopback addresses, without ports. It keeps other web sites
	// from reaching the page by a name that they let point here (DNS rebinding).
	Hosts []string

	// MaxViewers is how many may watch at once. Default: 100.
	MaxViewers int
}

// Page is an [http.Handler]. It does nothing while nobody watches. It is safe for
// concurrent use.
type Page struct {
	inspector *coordinator.Inspector
	options   Options
	ctx       context.Context // ends with Close
	stop      context.CancelFunc
	looking   sync.WaitGroup

	mu      sync.Mutex
	feeds   map[string]*feed // by account; those that somebody watches
	viewers int
}

// New returns a page about the accounts in a Redis. The client remains the caller's.
// The error is a [*coordinator.ConfigError].
func New(rdb redis.UniversalClient, o Options) (*Page, error) {
	switch {
	case rdb == nil:
		return nil, &coordinator.ConfigError{Field: "rdb", Reason: "a Redis client is needed"}
	case o.Interval != 0 && o.Interval < 100*time.Millisecond:
		return nil, &coordinator.ConfigError{Field: "Options.Interval", Value: o.Interval, Reason: "must be at least 100ms"}
	case o.MaxViewers < 0:
		return nil, &coordinator.ConfigError{Field: "Options.MaxViewers", Value: o.MaxViewers, Reason: "must not be negative"}
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.MaxViewers == 0 {
		o.MaxViewers = 100
	}
	p := &Page{inspector: coordinator.NewInspector(rdb), options: o, feeds: make(map[string]*feed)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// Close ends all streams and what runs for them. Closing twice changes nothing.
func (p *Page) Close() {
	p.mu.Lock()
	p.stop()
	p.mu.Unlock()
	p.looking.Wait()
}

// policy lets the page load what it brings along, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

var files = map[string]struct{ name, kind string }{
	"/":         {"static/index.html", "text/html; charset=utf-8"},
	"/page.css": {"static/page.css", "text/css; charset=utf-8"},
	"/page.js":  {"static/page.js", "text/javascript; charset=utf-8"},
	"/icon.svg": {"static/icon.svg", "image/svg+xml"},
}

// ServeHTTP serves the page at "/" and what belongs to it beside it.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if !p.mayAsk(r.Host) {
		http.Error(w, "This page does not answer to that host name: name it in page.Options.Hosts.", http.StatusMisdirectedRequest)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "This page only shows.", http.StatusMethodNotAllowed)
		return
	}
	path := r.URL.Path
	if path == "" {
		path = "/"
	}
	if path == "/events" {
		p.serveEvents(w, r)
		return
	}
	file, ok := files[path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	content, err := static.ReadFile(file.name)
	if err != nil {
		http.Error(w, "missing from this program", http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", file.kind)
	_, _ = w.Write(content) // who has gone does not read it
}

// mayAsk says whether a Host header names this machine, or is expected.
func (p *Page) mayAsk(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	if a, err := netip.ParseAddr(name); err == nil && a.Unmap().IsLoopback() {
		return true
	}
	return slices.ContainsFunc(p.options.Hosts, func(h string) bool { return strings.EqualFold(h, name) })
}

// Listen listens on a TCP address for the page. Unless anywhere is true it refuses
// addresses that other machines can reach: the page asks for no password.
func Listen(addr string, anywhere bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &coordinator.ConfigError{Field: "addr", Value: fmt.Sprintf("%q", addr), Reason: "must be host:port, as in 127.0.0.1:8080"}
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	// What the name has become counts, not what it was.
	if tcp, ok := listener.Addr().(*net.TCPAddr); !anywhere && (!ok || !tcp.IP.IsLoopback()) {
		listener.Close()
		return nil, &coordinator.ConfigError{Field: "addr", Value: fmt.Sprintf("%q", addr),
			Reason: fmt.Sprintf("other machines can reach %q, and the page asks for no password: use 127.0.0.1, or say that this is meant", host)}
	}
	return listener, nil
}
