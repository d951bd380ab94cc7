package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

// A finding is what one check has found.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn, fail, unknown
	Found  string `json:"found"`
	Fix    string `json:"fix,omitempty"`
}

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check that this Redis is fit: version, rights, latency, clock, scripts, memory",
		Long: "Checks what the fleet needs of Redis, and says what to fix. It runs every script on an account of\n" +
			"its own, named doctor-…, and deletes that again.\n\n" +
			"The exit code is 1 if something must be fixed; a warning is no failure.",
		Example: `  fleetlimit doctor --redis redis://fleetlimit:PASSWORD@redis:6379
  fleetlimit doctor -o json | jq '.[] | select(.result != "ok")'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			findings := a.examine(cmd.Context())
			if a.output == "json" {
				if err := a.json(findings); err != nil {
					return err
				}
			} else {
				a.tell(findings)
			}
			if slices.ContainsFunc(findings, func(f finding) bool { return f.Result == "fail" }) {
				return errSilent
			}
			return nil
		},
	}
	a.outputFlag(c)
	return c
}

func (a *app) tell(findings []finding) {
	p := painter{colour: a.colour}
	colours := map[string]string{"ok": green, "warn": yellow, "fail": red, "unknown": dim}
	for _, f := range findings {
		fmt.Fprintf(a.out, "%s %-11s %s\n", p.in(colours[f.Result], fmt.Sprintf("%-7s", f.Result)), f.Check, f.Found)
		if f.Fix != "" {
			fmt.Fprintf(a.out, "%20sfix: %s\n", "", f.Fix)
		}
	}
}

func (a *app) examine(ctx context.Context) []finding {
	info, err := a.info(ctx)
	findings := []finding{
		versionOf(info, err), a.latency(ctx), a.clock(ctx), a.scripts(ctx), a.listing(ctx),
		roleOf(info), evictionOf(info), persistenceOf(info),
	}
	return slices.DeleteFunc(findings, func(f finding) bool { return f.Check == "" })
}

// info reads what Redis says of itself; in a cluster, what one node says.
func (a *app) info(ctx context.Context) (map[string]string, error) {
	ctx, cancel := a.within(ctx)
	defer cancel()
	text, err := a.rdb.Info(ctx).Result()
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info, err
}

func unknown(check, why string) finding { return finding{check, "unknown", why, ""} }

func versionOf(info map[string]string, err error) finding {
	version, name := info["redis_version"], "Redis"
	if v := info["valkey_version"]; v != "" {
		return finding{"version", "ok", "Valkey " + v, ""}
	}
	if err != nil {
		return finding{"version", "unknown", "INFO: " + err.Error(), "grant +info to this user to check version, memory and persistence"}
	}
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	switch {
	case err != nil:
		return unknown("version", "INFO tells no version")
	case n < 7:
		return finding{"version", "fail", name + " " + version, "use Redis 7 or later, or Valkey"}
	}
	return finding{"version", "ok", name + " " + version, ""}
}

// latency asks twenty times. Every admission pays one round trip.
func (a *app) latency(ctx context.Context) finding {
	ctx, cancel := a.within(ctx)
	defer cancel()
	var times []time.Duration
	for range 20 {
		asked := time.Now()
		if err := a.rdb.Ping(ctx).Err(); err != nil {
			return finding{"latency", "fail", "PING: " + err.Error(), "see whether Redis is overloaded: redis-cli --latency, SLOWLOG GET"}
		}
		times = append(times, time.Since(asked))
	}
	slices.Sort(times)
	median, worst := times[len(times)/2], times[len(times)-1]
	found := fmt.Sprintf("round trip %v (median of 20), worst %v", median.Round(10*time.Microsecond), worst.Round(10*time.Microsecond))
	if median > 20*time.Millisecond || worst > 250*time.Millisecond {
		return finding{"latency", "warn", found, "put Redis near the workers: every admission pays one round trip; redis-cli --latency and SLOWLOG GET show more"}
	}
	return finding{"latency", "ok", found, ""}
}

// clock compares the clocks. Only that of Redis decides anything, but it must not
// run wild.
func (a *app) clock(ctx context.Context) finding {
	ctx, cancel := a.within(ctx)
	defer cancel()
	asked := time.Now()
	theirs, err := a.rdb.Time(ctx).Result()
	if err != nil {
		return finding{"clock", "fail", "TIME: " + err.Error(), "grant +time to this user"}
	}
	off := theirs.Sub(asked.Add(time.Since(asked) / 2))
	found := fmt.Sprintf("Redis is %v ahead of this machine (only the clock of Redis counts)", off.Round(time.Millisecond))
	if off < 0 {
		found = fmt.Sprintf("Redis is %v behind this machine (only the clock of Redis counts)", (-off).Round(time.Millisecond))
	}
	if off.Abs() < 5*time.Millisecond {
		found = "Redis and this machine agree (only the clock of Redis counts)"
	}
	if off.Abs() > 5*time.Second {
		return finding{"clock", "warn", found, "run NTP on both: after a failover a clock that is set back costs the fleet a window"}
	}
	return finding{"clock", "ok", found, ""}
}

// scripts lets two workers of an account of their own do all that a fleet does.
func (a *app) scripts(ctx context.Context) finding {
	ctx, cancel := a.within(ctx)
	defer cancel()
	err := a.rehearse(ctx)
	var answer redis.Error
	switch {
	case err == nil:
		return finding{"scripts", "ok", "permits, slots, wake-ups, pause and reset work", ""}
	case errors.As(err, &answer) && noRight(answer.Error()):
		return finding{"scripts", "fail", err.Error(), "give the user what deploy/redis/users.acl grants (key and channel pattern fleetlimit:{*}:*)"}
	case errors.As(err, &answer) && (strings.HasPrefix(answer.Error(), "READONLY") || strings.HasPrefix(answer.Error(), "MISCONF") || strings.HasPrefix(answer.Error(), "OOM")):
		return finding{"scripts", "fail", err.Error(), "this server refuses to write: see role, eviction and persistence"}
	}
	return finding{"scripts", "fail", err.Error(), "see that EVALSHA, EVAL and SUBSCRIBE are allowed, and that this server is not overloaded"}
}

// noRight says whether Redis refuses for want of a right: of this user, or of its scripts.
func noRight(answer string) bool {
	return strings.HasPrefix(answer, "NOPERM") || strings.Contains(answer, "The user executing the script")
}

func (a *app) rehearse(ctx context.Context) (failed error) {
	const chat = "POST /chat"
	account := "doctor-" + strings.ToLower(rand.Text()[:12])
	policy := coordinator.Policy{Limit: 600, Headroom: 1, Burst: 600, Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 1}}}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	o, err := coordinator.NewOperator(a.rdb, "doctor")
	if err != nil {
		return err
	}
	// Connections of their own: once they are cut, nothing comes after the reset.
	rdb, err := redisurl.Open(a.url)
	if err != nil {
		return err
	}
	var workers []*coordinator.Coordinator
	for _, name := range []string{"one", "two"} {
		c, err := coordinator.New(rdb, policy, coordinator.Options{Account: account, Worker: name, Logger: quiet, WhenAway: coordinator.FailFast, RedisTimeout: a.timeout})
		if err != nil {
			rdb.Close()
			return err
		}
		workers = append(workers, c)
	}
	defer func() {
		for _, c := range workers {
			failed = errors.Join(failed, c.Close())
		}
		rdb.Close()
		// Without SCAN the keys cannot be found: they go by themselves.
		if _, err := o.Reset(ctx, account); err != nil && failed == nil && !redis.HasErrorPrefix(err, "NOPERM") {
			failed = err
		}
	}()
	held, err := workers[0].Acquire(ctx, coordinator.Request{Endpoint: chat})
	if err != nil {
		return err
	}
	type result struct {
		permit *coordinator.Permit
		err    error
	}
	second := make(chan result, 1)
	go func() {
		p, err := workers[1].Acquire(ctx, coordinator.Request{Endpoint: chat})
		second <- result{p, err}
	}()
	s, err := workers[1].State(ctx)
	for err == nil && s.Endpoints[0].Waiting == 0 {
		if err = ctx.Err(); err == nil {
			s, err = workers[1].State(ctx)
		}
	}
	if err != nil {
		return err
	}
	held.Release()
	got := <-second
	if got.err != nil {
		return got.err
	}
	got.permit.Release()
	if _, err := o.Pause(ctx, account, time.Minute, "rehearsal"); err != nil {
		return err
	}
	var wait *coordinator.WaitError
	if _, err := workers[0].TryAcquire(ctx, coordinator.Request{}); !errors.As(err, &wait) || wait.Gate != coordinator.GateBackoff {
		return fmt.Errorf("a pause was not obeyed: %w", err)
	}
	_, err = o.Resume(ctx, account, false)
	return err
}

// listing says whether this user can find the accounts.
func (a *app) listing(ctx context.Context) finding {
	ctx, cancel := a.within(ctx)
	defer cancel()
	names, err := coordinator.NewInspector(a.rdb).Accounts(ctx)
	if err != nil {
		return finding{"accounts", "warn", err.Error(), "an operator needs +scan; with --account nothing has to be listed, and workers do without"}
	}
	return finding{"accounts", "ok", fmt.Sprintf("%d in use", len(names)), ""}
}

func roleOf(info map[string]string) finding {
	switch {
	case info["cluster_enabled"] == "1":
		return finding{"role", "ok", "a cluster", ""} // any node may have answered
	case info["role"] == "slave":
		return finding{"role", "fail", "this server is a replica of " + info["master_host"], "use the address of the master, or a redis+sentinel:// URL"}
	case info["role"] == "":
		return finding{}
	}
	return finding{"role", "ok", fmt.Sprintf("%s with %s replicas", info["role"], orZero(info["connected_slaves"])), ""}
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// evictionOf: an evicted account forgets what was spent.
func evictionOf(info map[string]string) finding {
	policy, ok := info["maxmemory_policy"]
	switch {
	case !ok:
		return finding{}
	case policy == "noeviction":
		return finding{"eviction", "ok", "maxmemory-policy noeviction", ""}
	case orZero(info["maxmemory"]) == "0":
		return finding{"eviction", "warn", "maxmemory-policy " + policy + ", but no maxmemory yet", "CONFIG SET maxmemory-policy noeviction"}
	}
	return finding{"eviction", "fail", fmt.Sprintf("maxmemory-policy %s with maxmemory %s: Redis may forget what was spent", policy, info["maxmemory"]), "CONFIG SET maxmemory-policy noeviction, and alert on memory instead"}
}

func persistenceOf(info map[string]string) finding {
	aof, ok := info["aof_enabled"]
	switch {
	case !ok:
		return finding{}
	case info["rdb_last_bgsave_status"] == "err":
		return finding{"persistence", "fail", "the last snapshot failed: Redis may refuse to write (MISCONF)", "see its log and its disk, or CONFIG SET stop-writes-on-bgsave-error no"}
	case aof == "1":
		return finding{"persistence", "ok", "append-only file", ""}
	}
	return finding{"persistence", "ok", "no append-only file: after a restart the workers tell again what they sent, which takes five seconds", ""}
}
