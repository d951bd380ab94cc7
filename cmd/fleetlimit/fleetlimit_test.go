package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/accountview"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

// A desk is a terminal with a Redis behind it.
type desk struct {
	t   *testing.T
	url string
	env map[string]string
	in  string
}

type result struct {
	code     int
	out, err string
}

func (d desk) run(args ...string) result {
	d.t.Helper()
	var out, err bytes.Buffer
	getenv := func(name string) string {
		if name == "REDIS_URL" {
			return d.url
		}
		return d.env[name]
	}
	code := run(d.t.Context(), args, getenv, strings.NewReader(d.in), &out, &err)
	return result{code, out.String(), err.String()}
}

// want runs a command and checks its exit code and what it says.
func (d desk) want(code int, says string, args ...string) result {
	d.t.Helper()
	r := d.run(args...)
	if r.code != code || !strings.Contains(r.out+r.err, says) {
		d.t.Errorf("fleetlimit %s: exit code %d, want %d and %q\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, code, says, r.out, r.err)
	}
	return r
}

const chat = "POST /mave/chat"

// A fleet is two workers of an account: one holds the only slot, the other waits.
type fleet struct {
	account string
	a, b    *coordinator.Coordinator
	held    *coordinator.Permit
	waiting chan error
}

func newFleet(t *testing.T, rdb redis.UniversalClient, account string) *fleet {
	t.Helper()
	policy := coordinator.Policy{Limit: 600, Headroom: 1, Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 1}}}
	f := &fleet{account: account, waiting: make(chan error, 1)}
	for name, to := range map[string]**coordinator.Coordinator{"w1": &f.a, "w2": &f.b} {
		c, err := coordinator.New(rdb, policy, coordinator.Options{Account: account, Worker: name, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		*to = c
	}
	var err error
	if f.held, err = f.a.Acquire(t.Context(), coordinator.Request{Endpoint: chat}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		p, err := f.b.Acquire(ctx, coordinator.Request{Endpoint: chat})
		if err == nil {
			p.Release()
		}
		f.waiting <- err
	}()
	f.await(t, func(s *coordinator.State) bool { return s.Endpoints[0].Waiting == 1 && s.Alive == 2 && s.Known })
	return f
}

func (f *fleet) await(t *testing.T, ok func(*coordinator.State) bool) {
	t.Helper()
	for {
		s, err := f.a.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok(s) {
			return
		}
	}
}

// onEachRedis runs a test against miniredis and against a real Redis of its own.
func onEachRedis(t *testing.T, test func(t *testing.T, d desk, rdb *redis.Client)) {
	t.Run("miniredis", func(t *testing.T) {
		mini := miniredis.RunT(t)
		mini.ClockTTL(true)
		rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
		t.Cleanup(func() { rdb.Close() })
		test(t, desk{t: t, url: "redis://" + mini.Addr()}, rdb)
	})
	t.Run("redis", func(t *testing.T) {
		s := redistest.Start(t, "--maxclients", "200")
		test(t, desk{t: t, url: s.URL}, s.Client(t))
	})
}

func TestAnOperatorSeesAndSteersAFleet(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		f := newFleet(t, rdb, "acme")

		text := d.want(exitOK, "1/1", "status").out
		for _, part := range []string{"acme", chat, "w1", "w2", "slots", "1 of 600", "2 alive: w1, w2"} {
			if !strings.Contains(text, part) {
				t.Errorf("status does not tell %q:\n%s", part, text)
			}
		}
		if strings.Contains(text, "\x1b") {
			t.Errorf("colours where nobody sees them: %q", text)
		}
		var views []accountview.Account
		if err := json.Unmarshal([]byte(d.want(exitOK, "", "status", "-o", "json").out), &views); err != nil {
			t.Fatal(err)
		}
		if len(views) != 1 || views[0].Endpoints[0].Leases[0].Worker != "w1" || views[0].Endpoints[0].Queue[0].Gate != "slots" {
			t.Errorf("status -o json: %+v", views)
		}
		d.want(exitOK, "1 of 1 slots in use, the longest for", "explain")

		d.want(exitOK, "Paused acme for 5m0s", "pause", "--for", "5m", "--reason", "a test")
		d.want(exitOK, "a test", "status", "-a", "acme")
		d.want(exitOK, "Nothing moves", "explain", "-a", "acme")
		if _, err := f.a.TryAcquire(t.Context(), coordinator.Request{}); err == nil {
			t.Error("a paused fleet goes on")
		}
		d.want(exitOK, "Resumed acme", "resume")
		d.want(exitOK, "was not paused", "resume")
		if p, err := f.a.TryAcquire(t.Context(), coordinator.Request{}); err != nil {
			t.Errorf("a resumed fleet stands still: %v", err)
		} else {
			p.Release()
		}

		d.want(exitNothing, "there are: w1, w2", "drain", "w9")
		d.want(exitOK, "it holds 1 slots", "drain", "w1", "--reason", "a test")
		d.want(exitOK, "w1 by", "status")
		d.want(exitOK, "w1 gets permits again", "drain", "w1", "--undo")
		d.want(exitNothing, "is not drained", "drain", "w1", "--undo")

		d.want(exitFailed, "Nothing was deleted", "reset")
		d.in = "acme\n"
		d.want(exitOK, "Deleted", "reset")
		f.held.Release()
		if err := <-f.waiting; err != nil {
			t.Errorf("the caller that waited: %v", err)
		}
	})
}

// A key that holds something of another type is named, hides no other account, and a reset
// is the way out.
func TestAKeyOfAnotherTypeIsNamed(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		newFleet(t, rdb, "acme")
		newFleet(t, rdb, "other")
		const key = "fleetlimit:{acme}:slots:" + chat
		if err := errors.Join(rdb.Del(t.Context(), key).Err(), rdb.Set(t.Context(), key, "x", 0).Err()); err != nil {
			t.Fatal(err)
		}
		if r := d.want(exitRedis, key, "status"); !strings.Contains(r.out, "other") || !strings.Contains(r.err, "string") {
			t.Errorf("status lists\n%s and says\n%s", r.out, r.err)
		}
		d.want(exitRedis, key, "status", "-a", "acme")
		d.want(exitRedis, key, "explain", "-a", "acme")
		d.in = "acme\n"
		d.want(exitOK, key, "reset", "-a", "acme")
		d.want(exitOK, "other", "status") // acme may be back by now
	})
}

func TestSeveralAccounts(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		newFleet(t, rdb, "acme")
		newFleet(t, rdb, "other")
		text := d.want(exitOK, "ACCOUNT", "status").out
		if !strings.Contains(text, "acme") || !strings.Contains(text, "other") {
			t.Errorf("status lists\n%s", text)
		}
		d.want(exitUsage, "acme, other", "pause", "--for", "1m")
		d.want(exitUsage, "acme, other", "explain")
		d.want(exitNothing, "no such account", "explain", "-a", "nobody")
		d.want(exitUsage, "letters, digits", "explain", "-a", "a b")
		if got := d.run("__complete", "explain", "-a", "a").out; !strings.HasPrefix(got, "acme\n:4") {
			t.Errorf("completion of an account: %q", got)
		}
		if got := d.run("__complete", "drain", "-a", "acme", "w").out; !strings.HasPrefix(got, "w1\nw2\n:4") {
			t.Errorf("completion of a worker: %q", got)
		}
	})
}

func TestAnEmptyRedis(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, _ *redis.Client) {
		d.want(exitOK, "No account in this Redis", "status")
		d.want(exitOK, "[]", "status", "-o", "json")
		d.want(exitNothing, "no account in this Redis", "explain")
		d.want(exitNothing, "no account in this Redis", "pause", "--for", "1m")
		d.want(exitNothing, "no such account", "reset", "-a", "acme", "--yes")
	})
}

func TestTheDoctorFindsAGoodRedisGood(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		text := d.want(exitOK, "permits, slots, wake-ups, pause and reset work", "doctor").out
		if strings.Contains(text, "fail") {
			t.Errorf("the doctor says\n%s", text)
		}
		if names, err := rdb.Keys(t.Context(), "*").Result(); err != nil || len(names) > 0 {
			t.Errorf("the doctor left %q, %v", names, err)
		}
	})
}

func TestTheDoctorSaysWhatToFix(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
	d := desk{t: t, url: s.URL}
	d.want(exitFailed, "fix: CONFIG SET maxmemory-policy noeviction", "doctor")

	rdb := s.Client(t)
	if err := rdb.Do(t.Context(), "ACL", "SETUSER", "weak", "on", ">secret-word", "~fleetlimit:*", "+ping", "+evalsha", "+eval", "+time").Err(); err != nil {
		t.Fatal(err)
	}
	d.url = strings.Replace(s.URL, "redis://", "redis://weak:secret-word@", 1)
	r := d.want(exitFailed, "users.acl", "doctor")
	if strings.Contains(r.out+r.err, "secret-word") {
		t.Errorf("the password is told: %s%s", r.out, r.err)
	}
	d.want(exitRedis, "may not do that", "status")
}

func TestWhatCannotBeUsed(t *testing.T) {
	s := redistest.Start(t, "--requirepass", "secret-word")
	d := desk{t: t, url: "redis://127.0.0.1:1"}
	d.want(exitRedis, "no answer from Redis", "status")
	wrong := strings.Replace(s.URL, "redis://", "redis://:other-secret@", 1)
	for _, url := range []string{wrong, s.URL, "redis://:other-secret@127.0.0.1:1", "http://:other-secret@x", "redis://:other-secret@[", "redis+sentinel://:other-secret@x"} {
		r := d.run("status", "--redis", url)
		if r.code != exitRedis && r.code != exitUsage || strings.Contains(r.out+r.err, "other-secret") || r.err == "" {
			t.Errorf("--redis %s: %+v", url, r)
		}
	}
	d.want(exitRedis, "refuses the password", "status", "--redis", wrong)
	d.want(exitRedis, "asks for a password", "status", "--redis", s.URL)
	for _, args := range [][]string{
		{"nonsense"}, {"status", "--nonsense"}, {"status", "x"}, {"drain"}, {"pause"}, {"pause", "--for", "25h"}, {"pause", "--for", "soon"},
		{"watch", "--every", "1ms"}, {"status", "-o", "xml"}, {"status", "--timeout", "-1s"}, {"drain", "w1", "--for", "0s"},
	} {
		if r := d.run(args...); r.code != exitUsage || r.err == "" {
			t.Errorf("fleetlimit %q: %+v, want exit code %d", args, r, exitUsage)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	d := desk{t: t}
	help := d.want(exitOK, "Exit codes:", "--help").out
	for _, name := range []string{"status", "watch", "explain", "pause", "resume", "drain", "reset", "doctor", "completion"} {
		if !strings.Contains(help, "\n  "+name) {
			t.Errorf("--help does not list %s", name)
		}
		if name != "completion" {
			d.want(exitOK, "Examples:\n  fleetlimit "+name, name, "--help")
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		d.want(exitOK, "fleetlimit", "completion", shell)
	}
}

// A pen is an output that says when something was written to it.
type pen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{}
}

func (p *pen) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.written <- struct{}{}:
	default:
	}
	return p.text.Write(b)
}

func TestWatchWritesOnWhereThereIsNoTerminal(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		newFleet(t, rdb, "acme")
		ctx, cancel := context.WithCancel(t.Context())
		out := &pen{written: make(chan struct{})}
		code := make(chan int)
		go func() {
			code <- run(ctx, []string{"watch", "--every", "100ms", "--redis", d.url}, func(string) string { return "" }, strings.NewReader(""), out, out)
		}()
		for range 3 {
			<-out.written
		}
		cancel()
		if c := <-code; c != exitInterrupted {
			t.Errorf("exit code %d", c)
		}
		if text := out.text.String(); strings.Count(text, "account    acme") < 2 || strings.Contains(text, "\x1b") {
			t.Errorf("watch wrote %q", text)
		}
	})
}

func TestTheLiveViewFollowsItsKeys(t *testing.T) {
	onEachRedis(t, func(t *testing.T, d desk, rdb *redis.Client) {
		newFleet(t, rdb, "acme")
		newFleet(t, rdb, "other")
		a := &app{getenv: func(string) string { return "" }, redis: d.url, timeout: time.Second * 5, colour: true}
		if err := a.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer a.close()
		m := live{app: a, ctx: t.Context(), every: time.Second, height: 12}
		next, _ := m.Update(m.shoot())
		if text := next.View().Content; !strings.Contains(text, "acme") || !strings.Contains(text, "account 1 of 2") || strings.Count(text, "\n") > 12 {
			t.Errorf("first %q", text)
		}
		m = next.(live)
		m.chosen--
		next, _ = m.Update(m.shoot())
		if text := next.View().Content; !strings.Contains(text, "other") || !strings.Contains(text, "account 2 of 2") {
			t.Errorf("then %q", text)
		}
	})
}

// In a cluster the accounts lie on several masters; all are found, and steered.
func TestACluster(t *testing.T) {
	c := redistest.StartCluster(t)
	d := desk{t: t, url: c.URL}
	rdb, err := redisurl.Open(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	var names []string
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		newFleet(t, rdb, name)
		names = append(names, name)
	}
	text := d.want(exitOK, "ACCOUNT", "status").out
	for _, name := range names {
		if !strings.Contains(text, "\n"+name+" ") {
			t.Errorf("status does not list %s:\n%s", name, text)
		}
	}
	d.want(exitOK, "Paused e", "pause", "-a", "e", "--for", "1m")
	d.want(exitOK, "Nothing moves", "explain", "-a", "e")
	d.want(exitOK, "Resumed e", "resume", "-a", "e")
	d.want(exitOK, "Deleted", "reset", "-a", "e", "--yes")
	d.want(exitOK, "permits, slots, wake-ups, pause and reset work", "doctor")
}
