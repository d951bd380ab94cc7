package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/integration/fleet"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

const chat = "POST /mave/chat"

// policy has a short lease, since here time is real.
var policy = coordinator.Policy{
	Limit: 6000, Headroom: 1, LeaseTTL: time.Second,
	Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 3}},
}

// A place is a Redis in which the suite runs.
type place struct {
	url   string                // for workers
	admin redis.UniversalClient // may do what workers may not
}

// given is the Redis that REDIS_URL names, or a server of the test's own.
func given(t *testing.T) place {
	t.Helper()
	url := redistest.Start(t).URL
	return place{url, redistest.Open(t, url)}
}

// eachMaster calls a function for every server that takes writes.
func (p place) eachMaster(t *testing.T, do func(ctx context.Context, rdb *redis.Client) error) {
	t.Helper()
	var err error
	switch c := p.admin.(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(context.Background(), do)
	case *redis.Client:
		err = do(context.Background(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// suite is what holds wherever Redis runs.
var suite = map[string]func(*testing.T, place){
	"CapHolds": capHolds, "KilledProcess": killedProcess, "ScriptFlush": scriptFlush, "TheKeyIsNowhere": theKeyIsNowhere,
	"ManyAccounts": manyAccounts, "Fleet": aFleetIsCareful,
}

func join(t *testing.T, rdb redis.UniversalClient, account, worker string) *coordinator.Coordinator {
	t.Helper()
	c, err := coordinator.New(rdb, policy, coordinator.Options{
		Account: account, Worker: worker, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func acquire(t *testing.T, c *coordinator.Coordinator, endpoint string) *coordinator.Permit {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := c.Acquire(ctx, coordinator.Request{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCapHoldsBetweenWorkersOnRealRedis(t *testing.T) { capHolds(t, given(t)) }

func capHolds(t *testing.T, at place) {
	rdb, account := redistest.Open(t, at.url), redistest.Account(t)
	var mu sync.Mutex
	running, most, calls := 0, 0, 0
	var wg sync.WaitGroup
	for i := range 4 {
		c := join(t, rdb, account, fmt.Sprint("w", i))
		for range 8 {
			wg.Go(func() {
				for range 25 {
					p := acquire(t, c, chat)
					mu.Lock()
					running, calls = running+1, calls+1
					most = max(most, running)
					mu.Unlock()
					mu.Lock()
					running--
					mu.Unlock()
					p.Release()
				}
			})
		}
	}
	wg.Wait()
	if most > 3 || calls != 4*8*25 {
		t.Errorf("%d calls, %d at once; want %d and at most 3", calls, most, 4*8*25)
	}
}

// TestMain lets the test binary be a worker that holds slots until it is killed.
func TestMain(m *testing.M) {
	fleet.Main()
	redis.SetLogger(silence{}) // it tells of every connection that a test cuts
	if url := os.Getenv("FLEETLIMIT_TEST_FREEZE"); url != "" {
		sendAfterFreeze(url, os.Getenv("FLEETLIMIT_TEST_ACCOUNT"))
		return
	}
	if url := os.Getenv("FLEETLIMIT_TEST_HOLD"); url != "" {
		holdSlots(url, os.Getenv("FLEETLIMIT_TEST_ACCOUNT"))
		return
	}
	// Most tests wait for windows to pass, and need little of a processor.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func holdSlots(url, account string) {
	rdb, err := redisurl.Open(url)
	if err != nil {
		panic(err)
	}
	c, err := coordinator.New(rdb, policy, coordinator.Options{Account: account, Worker: "doomed"})
	if err != nil {
		panic(err)
	}
	for range 3 {
		if _, err := c.Acquire(context.Background(), coordinator.Request{Endpoint: chat}); err != nil {
			panic(err)
		}
	}
	fmt.Println("holding")
	io.Copy(io.Discard, os.Stdin) // ends when the parent does
}

func TestKilledProcessGivesItsSlotsBack_Redisson2213(t *testing.T) { killedProcess(t, given(t)) }

func killedProcess(t *testing.T, at place) {
	rdb, account := redistest.Open(t, at.url), redistest.Account(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	doomed := exec.Command(self)
	doomed.Env = append(os.Environ(), "FLEETLIMIT_TEST_HOLD="+at.url, "FLEETLIMIT_TEST_ACCOUNT="+account)
	stdin, err := doomed.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := doomed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := doomed.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "holding\n" {
		t.Fatalf("the worker said %q, %v", line, err)
	}

	heir := join(t, rdb, account, "heir")
	var full *coordinator.WaitError
	if _, err := heir.TryAcquire(context.Background(), coordinator.Request{Endpoint: chat}); !errors.As(err, &full) || full.Gate != coordinator.GateSlots {
		t.Fatalf("error %v, want all slots taken", err)
	}
	s, err := heir.State(context.Background())
	if err != nil || s.Endpoints[0].InUse != 3 || s.Endpoints[0].Leases[0].Worker != "doomed" {
		t.Fatalf("state %+v, %v: want three slots held by doomed", s, err)
	}
	if err := doomed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	doomed.Wait()
	for range 3 {
		defer acquire(t, heir, chat).Release()
	}
}

func TestScriptFlushIsNotNoticed(t *testing.T) { scriptFlush(t, given(t)) }

func scriptFlush(t *testing.T, at place) {
	rdb, account := redistest.Open(t, at.url), redistest.Account(t)
	c := join(t, rdb, account, "a")
	for range 20 {
		p := acquire(t, c, chat)
		at.eachMaster(t, func(ctx context.Context, rdb *redis.Client) error { return rdb.ScriptFlush(ctx).Err() })
		p.Report(coordinator.Feedback{Status: 200, Limit: 6000, Remaining: 5000, Reset: -1, RetryAfter: -1})
		p.Release()
	}
	for range 3 {
		defer acquire(t, c, chat).Release()
	}
}

// An API key must not be readable anywhere in Redis, in a log line or in an error.
func TestTheKeyIsNowhere(t *testing.T) { theKeyIsNowhere(t, given(t)) }

func theKeyIsNowhere(t *testing.T, at place) {
	const key = "mvra_live_do_not_tell_anybody"
	rdb := redistest.Open(t, at.url)
	ctx := context.Background()
	var log bytes.Buffer
	c, err := coordinator.New(rdb, policy, coordinator.Options{APIKey: key, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	held := acquire(t, c, chat)
	acquire(t, c, chat).Report(coordinator.Feedback{Status: 429, Limit: 6000, Remaining: 0, Reset: -1, RetryAfter: time.Minute})
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err = c.Acquire(short, coordinator.Request{Endpoint: chat})
	if err == nil || strings.Contains(err.Error(), key) {
		t.Errorf("error %v, want one that does not show the key", err)
	}
	var seen atomic.Int64 // masters are asked at the same time
	at.eachMaster(t, func(ctx context.Context, rdb *redis.Client) error {
		keys, err := rdb.Keys(ctx, "fleetlimit:*").Result()
		for _, k := range keys {
			dump, err := rdb.Dump(ctx, k).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			if strings.Contains(k, key) || strings.Contains(dump, key) {
				t.Errorf("Redis key %s shows the API key", k)
			}
		}
		seen.Add(int64(len(keys)))
		return err
	})
	if seen.Load() == 0 {
		t.Error("no keys were looked at")
	}
	held.Release()
	c.Close()
	if strings.Contains(log.String(), key) {
		t.Error("the log shows the API key")
	}
}
