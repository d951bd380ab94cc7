package integration

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

func TestTheSuiteOnEveryTopology(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) place{
		"given": given,
		"TLS and password": func(t *testing.T) place {
			s := redistest.StartTLS(t)
			return place{s.URL, s.Client(t)}
		},
		"user of deploy": userOfDeploy,
		"Sentinels": func(t *testing.T) place {
			url := redistest.StartSentinel(t).URL
			return place{url, redistest.Open(t, url)}
		},
		"cluster": func(t *testing.T) place {
			url := redistest.StartCluster(t).URL
			return place{url, redistest.Open(t, url)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := start(t)
			for name, test := range suite {
				t.Run(name, func(t *testing.T) { test(t, at) })
			}
			if name == "user of deploy" {
				nothingWasRefused(t, at)
			}
		})
	}
}

func userOfDeploy(t *testing.T) place {
	t.Helper()
	s, workers := redistest.StartWithUsers(t, redistest.UserFile, "fleetlimit")
	return place{workers, s.Client(t)}
}

// nothingWasRefused makes sure that the user lacks nothing that it has tried to do.
func nothingWasRefused(t *testing.T, at place) {
	t.Helper()
	log, err := at.admin.Do(context.Background(), "ACL", "LOG").Slice()
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range log {
		if text := fmt.Sprint(entry); !strings.Contains(text, "setinfo") {
			t.Errorf("refused: %s", text)
		}
	}
}

// manyAccounts are spread over all servers of a cluster, and share nothing.
func manyAccounts(t *testing.T, at place) {
	rdb := redistest.Open(t, at.url)
	small := coordinator.Policy{Limit: 3, Window: time.Hour, Headroom: 1, Burst: 3}
	for range 24 {
		name := redistest.Account(t)
		for worker := range 2 {
			c, err := coordinator.New(rdb, small, coordinator.Options{Account: name, Worker: fmt.Sprint("w", worker)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			acquire(t, c, "")
		}
	}
	at.eachMaster(t, func(ctx context.Context, rdb *redis.Client) error {
		keys, err := rdb.Keys(ctx, "fleetlimit:*:account").Result()
		if err == nil && len(keys) == 0 {
			err = fmt.Errorf("%v has no account of 24", rdb)
		}
		return err
	})
}

func TestTheUserOfDeployMayDoNothingElse(t *testing.T) {
	at := userOfDeploy(t)
	rdb := redistest.Open(t, at.url).(*redis.Client)
	ctx := context.Background()
	if err := at.admin.Set(ctx, "orders:1", "secret", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]any{
		{"KEYS", "*"}, {"SCAN", 0}, {"FLUSHALL"}, {"FLUSHDB"}, {"CONFIG", "GET", "*"}, {"CONFIG", "SET", "maxmemory", 1},
		{"ACL", "LIST"}, {"CLIENT", "LIST"}, {"MONITOR"}, {"SHUTDOWN"}, {"SAVE"}, {"REPLICAOF", "NO", "ONE"},
		{"SCRIPT", "FLUSH"}, {"FUNCTION", "LIST"}, {"MIGRATE", "127.0.0.1", 1, "k", 0, 1}, {"RANDOMKEY"}, {"DBSIZE"}, {"INFO"},
		{"GET", "orders:1"}, {"SET", "orders:1", 1}, {"DEL", "orders:1"}, {"GET", "fleetlimit:no-braces"},
		{"PUBLISH", "orders", 1}, {"SUBSCRIBE", "orders"}, {"PSUBSCRIBE", "*"},
		{"EVAL", "return redis.call('GET', KEYS[1])", 1, "orders:1"},
		{"EVAL", "return redis.call('GET', 'orders:1')", 0},
		{"EVAL", "return redis.call('KEYS', '*')", 0},
		{"EVAL", "return redis.call('PUBLISH', 'orders', 1)", 0},
	} {
		err := rdb.Do(ctx, command...).Err()
		if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "can't") {
			t.Errorf("%v: %v, want NOPERM", command, err)
		}
	}
	if got, err := at.admin.Get(ctx, "orders:1").Result(); got != "secret" {
		t.Errorf("orders:1 is %q, %v", got, err)
	}
	u, err := url.Parse(at.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = nil
	if err := redistest.Open(t, u.String()).Ping(ctx).Err(); err == nil {
		t.Error("somebody without a password is let in")
	}
}

func TestSentinelFailoverUnderLoad(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinel(t)
	r := startFleet(t, s.URL, "")
	r.serves(20)
	_, master := s.Failover(t)
	r.serves(30)
	master.Stop() // this time it crashes
	s.AwaitOther(t, master)
	r.serves(30)
	r.carefully("lease lost")
}

func TestClusterFailoverUnderLoad(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	r := startFleet(t, c.URL, "")
	r.serves(20)
	key := "fleetlimit:{" + coordinator.AccountName(r.key, nil) + "}:account"
	master, replica := c.NodeOf(t, key)
	replica.TakeOver(t)
	master.AwaitRole(t, "slave")
	r.serves(30)
	replica.Stop() // this time it crashes
	master.AwaitRole(t, "master")
	r.serves(30)
	r.carefully("lease lost")
}

func TestSlotMigrationUnderLoad(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	r := startFleet(t, c.URL, "")
	r.serves(20)
	key := "fleetlimit:{" + coordinator.AccountName(r.key, nil) + "}:account"
	c.Migrate(t, key, func() { r.serves(10) }) // half of the keys are here, half there
	r.serves(30)
	r.carefully("lease lost")
}

// Replication is asynchronous: a replica that is promoted may not have heard of the
// last writes. The requests that they admitted are not counted, and not one more.
func TestAFailoverThatLosesWritesLosesExactlyThoseRequests(t *testing.T) {
	const limit, before, lost = 60, 10, 7
	p := coordinator.Policy{
		Limit: limit, Window: time.Hour, Headroom: 1, Burst: limit,
		Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 3}},
	}
	pair := redistest.StartPair(t)
	account := redistest.Account(t)
	at := func(n *redistest.Node, worker string) *coordinator.Coordinator {
		c, err := coordinator.New(n.Client, p, coordinator.Options{Account: account, Worker: worker})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	old := at(pair.Master, "old")
	for range before {
		acquire(t, old, "")
	}
	pair.Promote(t) // from here on the master writes for itself
	for range lost - 2 {
		acquire(t, old, "")
	}
	for range 2 {
		acquire(t, old, chat)
	}
	pair.Master.Stop()

	heir := at(pair.Replica, "heir")
	got, slots := 0, 0
	for range 3 {
		if _, err := heir.TryAcquire(context.Background(), coordinator.Request{Endpoint: chat}); err == nil {
			got, slots = got+1, slots+1
		}
	}
	for {
		if _, err := heir.TryAcquire(context.Background(), coordinator.Request{}); err != nil {
			break
		}
		got++
	}
	if before+got != limit {
		t.Errorf("%d more were admitted after %d that are known, want %d in all: those that are not known are %d", got, before, limit, lost)
	}
	if slots != 3 {
		t.Errorf("%d slots were given, want all 3: the two leases that were lost are not known", slots)
	}
}
