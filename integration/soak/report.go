package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetlimit/fleetlimit/integration/fleet"
)

// What a worker at rest may hold more than it did before its work: a few goroutines
// that are on their way out, a full pool of idle connections to Redis, and what the
// allocator has not given back.
const (
	moreGoroutines = 5
	moreFiles      = 32
	moreHeap       = 4 << 20
)

// conclude lets all workers rest, looks at what they hold, and reports.
func (s *soak) conclude() (good bool, err error) {
	s.say("the end: all callers finish what they are at")
	length := time.Since(s.begun)
	rests := make([]fleet.Report, len(s.members))
	errs := make([]error, len(s.members))
	var resting sync.WaitGroup
	for i, m := range s.members {
		resting.Go(func() { rests[i], errs[i] = m.Rest() })
	}
	resting.Wait()
	for _, err := range errs {
		if err != nil {
			return false, err
		}
	}
	var bad []string
	complain := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }

	fmt.Printf("\n%-8s %10s %12s %14s %12s %8s\n", "worker", "calls", "longest", "goroutines", "heap KB", "files")
	for i, m := range s.members {
		was, is := m.first.Rest, rests[i].Rest
		fmt.Printf("%-8s %10d %12v %6d → %-5d %5d → %-5d %3d → %-3d\n", m.Name, rests[i].Calls,
			rests[i].Longest.Round(time.Millisecond), was.Goroutines, is.Goroutines, was.Heap>>10, is.Heap>>10, was.Files, is.Files)
		if is.Goroutines > was.Goroutines+moreGoroutines {
			complain("%s: goroutines grew from %d to %d", m.Name, was.Goroutines, is.Goroutines)
		}
		if is.Files > was.Files+moreFiles {
			complain("%s: open files grew from %d to %d", m.Name, was.Files, is.Files)
		}
		if is.Heap > was.Heap+moreHeap {
			complain("%s: the heap grew from %d to %d KB", m.Name, was.Heap>>10, is.Heap>>10)
		}
		if is.Goroutines == 0 || rests[i].OK == 0 {
			complain("%s has done nothing", m.Name)
		}
	}
	for len(s.members) > 0 {
		m := s.members[0]
		r, err := m.Close()
		if err != nil {
			return false, err
		}
		for what := range r.Errors {
			if strings.HasPrefix(what, "closing") {
				complain("%s: %s", m.Name, what)
			}
		}
		s.dismiss(m)
	}
	if err := s.lookAtRedis(complain); err != nil {
		return false, err
	}
	s.lookAtJudge(length, complain)
	if len(bad) == 0 {
		fmt.Println("\nPASS: no violation, and nothing has grown")
		return true, nil
	}
	fmt.Println("\nFAIL")
	for _, line := range bad {
		fmt.Println("  " + line)
	}
	return false, nil
}

// lookAtRedis makes sure that nobody has left a connection, a lease or a key without
// TTL behind.
func (s *soak) lookAtRedis(complain func(string, ...any)) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rdb := s.toServer()
	defer rdb.Close()
	connections := func() (n int, err error) {
		list, err := rdb.ClientList(ctx).Result()
		return strings.Count(list, "\n") - 1, err
	}
	n, err := connections()
	for deadline := time.Now().Add(patience / 2); n > 0 && err == nil && time.Now().Before(deadline); n, err = connections() {
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	keys, err := rdb.Keys(ctx, "*").Result()
	if err != nil {
		return err
	}
	for _, k := range keys {
		ttl, err := rdb.PTTL(ctx, k).Result()
		if err != nil {
			return err
		}
		if ttl == -1 {
			complain("key %s has no TTL", k)
		}
	}
	fmt.Printf("\nRedis: %d connections, %d keys\n", n, len(keys))
	if n > 0 {
		complain("%d connections to Redis are still open", n)
	}
	if len(keys) > 40 {
		complain("%d keys are left in Redis", len(keys))
	}
	return nil
}

func (s *soak) lookAtJudge(length time.Duration, complain func(string, ...any)) {
	j, t := s.api.Stats(), &s.tally
	fmt.Printf("\n%v, seed %d; %d workers killed, %d restarts of Redis\n", length.Round(time.Second), s.seed, t.killed, t.restarts)
	fmt.Printf("what happened:")
	for _, name := range slices.Sorted(maps.Keys(t.events)) {
		fmt.Printf(" %s %d", name, t.events[name])
	}
	fmt.Printf("\ncallers: %d calls, %d succeeded, the longest took %v; not run for 250 ms or more: %d times\n", t.calls, t.ok, t.longest.Round(time.Millisecond), t.stalls)
	for _, what := range slices.Sorted(maps.Keys(t.errors)) {
		fmt.Printf("  %6d %s\n", t.errors[what], what)
		if strings.HasPrefix(what, "gate") || what == "Redis away" || what == "deadline" {
			complain("%d callers were not served: %s", t.errors[what], what)
		}
	}
	used, _ := s.api.Utilization(0, s.api.Since())
	fmt.Printf("the judge: %d requests, %d accepted, %.1f %% of what the API allowed\n", j.Requests, j.Accepted, 100*used)
	fmt.Printf("  429s: %d injected and in their pauses, %d for a limit lowered without notice, %d others\n",
		j.Surprise429, j.Unavoidable429, j.LimitViolations+j.SlotViolations)
	fmt.Printf("  violations: limit %d, slots %d, pauses %d\n", j.LimitViolations, j.SlotViolations, j.PauseViolations)
	fmt.Printf("  most in a window: %d of %d; most at once: %v\n", j.MaxInWindow, s.limit, j.MaxInFlight)
	if n := fleet.Violations(j); n > 0 {
		complain("the judge has counted %d violations", n)
	}
	if t.ok == 0 {
		complain("no call has succeeded")
	}
}
