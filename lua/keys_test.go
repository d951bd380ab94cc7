package lua

import (
	"context"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"encoding/json"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// Redis itself watches that the scripts touch no key but those that they declare:
// they run as a user who may touch no others.
func TestScriptsDeclareAllKeys(t *testing.T) {
	own := redistest.Start(t, "--maxclients", "100")
	s := newServer(t, own)
	options, err := redis.ParseURL(own.URL)
	if err != nil {
		t.Fatal(err)
	}
	options.Username, options.Password = "script", "-"
	options.DisableIdentity = true
	user := redis.NewClient(options)
	t.Cleanup(func() { user.Close() })
	s.confined = func(f fails, keys []string) *redis.Client {
		rules := []any{"ACL", "SETUSER", "script", "on", "nopass", "+@all", "resetchannels", "&" + s.prefix + "wake:*", "resetkeys"}
		for _, key := range append([]string{s.prefix + "clock"}, keys...) {
			rules = append(rules, "~"+strings.ReplaceAll(key, " ", "?"))
		}
		if err := s.rdb.Do(context.Background(), rules...).Err(); err != nil {
			f.Fatalf("ACL SETUSER: %v", err)
		}
		return user
	}
	p := limits{limit: 1, window: 1000, headroom: 1, burst: 1}
	s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
	if err := user.Get(context.Background(), s.prefix+"workers").Err(); !redis.HasErrorPrefix(err, "NOPERM") {
		t.Fatalf("the user is not confined: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		s.reset(t)
		d := newDuel(t, s)
		d.crowd = true
		t.Repeat(map[string]func(*rapid.T){
			"admit": d.admit, "admit many": d.admit, "together": d.together, "release": d.alone(d.release), "return": d.alone(d.giveBack), "late": d.alone(d.late), "spent": d.alone(d.spent),
			"again": d.alone(d.again), "job": d.alone(d.job), "said": d.alone(d.said), "renew": d.renew, "leave": d.alone(d.leave), "time": d.time,
		})
	})
}

// cluster starts a cluster of one node that has all slots.
func cluster(t *testing.T) *redis.ClusterClient {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bus := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	options, err := redis.ParseURL(redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", bus).URL)
	if err != nil {
		t.Fatal(err)
	}
	// The client asks again while the cluster is not ready: for two seconds.
	options.MaxRetries, options.MinRetryBackoff, options.MaxRetryBackoff = 100, 50*time.Millisecond, 100*time.Millisecond
	node := redis.NewClient(options)
	t.Cleanup(func() { node.Close() })
	ctx := context.Background()
	if err := node.ClusterAddSlotsRange(ctx, 0, 16383).Err(); err != nil {
		t.Fatalf("CLUSTER ADDSLOTSRANGE: %v", err)
	}
	if err := node.Set(ctx, "ready", 1, time.Minute).Err(); err != nil {
		t.Fatalf("the cluster does not get ready: %v", err)
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{options.Addr}})
	t.Cleanup(func() { c.Close() })
	return c
}

var everything = limits{
	limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 30,
	endpoints: []endpoint{{"POST /chat", 1, 30_000, 0}, {"POST /video", 1, 30_000, 30_000}},
}

// useEverything makes an account with something in each of its keys: a worker that
// holds a slot, one that waits for it, a job, a pause of chat, a heartbeat.
func useEverything(t *testing.T, rdb redis.UniversalClient, s *server) {
	t.Helper()
	p, ctx := everything, context.Background()
	run := func(script *redis.Script, keys []string, args []any) []string {
		t.Helper()
		v, err := script.Run(ctx, rdb, keys, args...).StringSlice()
		if err != nil {
			t.Fatalf("%v\nKEYS %q", err, keys)
		}
		return v
	}
	admit := func(a ask) []string {
		keys, args := s.admitCall(p, a)
		return run(Exchange, keys, args)
	}
	settle := func(worker string, ops ...any) {
		keys, args := s.exchangeCall(p, worker, ops)
		run(Exchange, keys, args)
	}
	admit(ask{worker: "a", endpoint: -1, n: 3})
	chat := admit(ask{worker: "a", endpoint: 0, n: 1})
	video := admit(ask{worker: "a", endpoint: 1, n: 1})
	admit(ask{worker: "b", endpoint: 1, n: 1, queue: true})
	lease := func(r []string) string { return "a:" + r[10] + ":" + r[exchanged+1] }
	settle("a", "bind", 2, lease(video), jobKey(p, 0), 30_000, "seen", 2, jobKey(p, 0), 30_000)
	admit(ask{worker: "b", endpoint: -1, n: 40, queue: true})
	x := saying{endpoint: 0, seq: 0, status: 429, limit: -1, remaining: 3, reset: -1, retryAfter: 20_000}
	settle("a", x.args()...)
	keys, args := s.renewCall(p, "a", 30_000, []held{{0, lease(chat)}, {1, "a:1:1"}})
	if v := run(Renew, keys, args); len(v) != 6 || v[0] != "1" || v[5] != "a:1:1" {
		t.Fatalf("renew answered %q", v)
	}
}

// What an operator does touches no other keys either.
func TestControlDeclaresAllKeys(t *testing.T) {
	own := redistest.Start(t, "--maxclients", "100")
	s := &server{prefix: "fleetlimit:{" + redistest.Account(t) + "}:"}
	rdb := own.Client(t)
	options, err := redis.ParseURL(own.URL)
	if err != nil {
		t.Fatal(err)
	}
	options.Username, options.Password, options.DisableIdentity = "script", "-", true
	user := redis.NewClient(options)
	t.Cleanup(func() { user.Close() })
	names := []string{"POST /chat", "POST /video"}
	keys := s.budgetKeys()
	rules := []any{"ACL", "SETUSER", "script", "on", "nopass", "+@all", "resetchannels", "&" + s.prefix + "wake", "&" + s.prefix + "wake:*", "resetkeys"}
	for _, name := range names {
		keys = append(keys, s.endpointKeys(name)...)
	}
	for _, key := range keys {
		rules = append(rules, "~"+strings.ReplaceAll(key, " ", "?"))
	}
	if err := rdb.Do(t.Context(), rules...).Err(); err != nil {
		t.Fatal(err)
	}
	for _, op := range [][]any{
		{"pause", 60_000, "a test"}, {"resume", "0"}, {"pause", 60_000, "a test"}, {"resume", "1"},
		{"drain", "b", 60_000, "a test"}, {"undrain", "b"}, {"reset"},
	} {
		useEverything(t, rdb, s)
		args := append([]any{"ada", len(names), names[0], names[1]}, op...)
		v, err := Control.Run(t.Context(), user, keys, args...).StringSlice()
		if err != nil || len(v) != 4 {
			t.Errorf("%v: %q, %v", op, v, err)
		}
		left, err := rdb.Keys(t.Context(), s.prefix+"*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range left {
			if ttl, err := rdb.PTTL(t.Context(), key).Result(); err != nil || ttl <= 0 {
				t.Errorf("after %v: TTL of %s %v, %v", op, key, ttl, err)
			}
			if err := rdb.Del(t.Context(), key).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestScriptsRunInACluster(t *testing.T) {
	c := cluster(t)
	s := &server{prefix: "fleetlimit:{" + redistest.Account(t) + "}:"}
	useEverything(t, c, s)
	text, err := Inspect.Run(context.Background(), c, []string{s.prefix + "account", s.prefix + "slots:POST /chat"}).Text()
	if err != nil || !json.Valid([]byte(text)) {
		t.Errorf("inspect.lua answered %q, %v", text, err)
	}
}

// An inspection is what inspect.lua tells, as far as the test knows it beforehand.
type inspection struct {
	Account struct {
		Limit, Used, Room float64
		Slots             map[string]int
	}
	Chat struct {
		InUse  int `json:"in_use"`
		Leases []struct{ Worker string }
	} `json:"slots:POST /chat"`
	Video struct {
		InUse int `json:"in_use"`
	} `json:"slots:POST /video"`
	Queue struct {
		Waiting int
		Places  []struct{ Worker, Endpoint string }
	}
	VideoQueue struct{ Waiting int } `json:"queue:POST /video"`
	Backoff    struct {
		Reason, Worker string
		Strikes        int
	} `json:"backoff:POST /chat"`
	Workers  struct{ Alive int }
	Timeline struct {
		Samples []struct {
			Waiting int
			Paused  bool
		}
	}
}

func TestInspectRunsFromRedisCLI(t *testing.T) {
	program, err := exec.LookPath("redis-cli")
	if err != nil {
		t.Fatal("redis-cli is not on the PATH: `make test` installs it with redis-server")
	}
	server := redistest.Start(t)
	s := newServer(t, server)
	useEverything(t, s.rdb, s)
	args := []string{"-u", server.URL, "--raw", "--eval", "inspect.lua"}
	for _, what := range []string{
		"account", "backoff", "backoff:POST /chat", "slots:POST /chat", "slots:POST /video",
		"queue", "queue:POST /video", "workers", "timeline",
	} {
		args = append(args, s.prefix+what)
	}
	out, err := exec.CommandContext(t.Context(), program, append(args, ",", "10")...).Output()
	if err != nil {
		t.Fatalf("redis-cli: %v", err)
	}
	var got, want inspection
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("inspect.lua answered no JSON: %v\n%s", err, out)
	}
	if err := json.Unmarshal([]byte(`{
		"account": {"limit": 60, "used": 30, "room": 30, "slots": {"POST /chat": 1, "POST /video": 1}},
		"slots:POST /chat": {"in_use": 1, "leases": [{"worker": "a"}]},
		"slots:POST /video": {"in_use": 1},
		"queue": {"waiting": 1, "places": [{"worker": "b", "endpoint": "*"}]},
		"queue:POST /video": {"waiting": 1},
		"backoff:POST /chat": {"reason": "status 429, cap", "worker": "a", "strikes": 1},
		"workers": {"alive": 1},
		"timeline": {"samples": [{"waiting": 2, "paused": false}]}
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inspect.lua (-want +got):\n%s\n%s", diff, out)
	}
}
