package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A task is what one measuring process does. It travels as JSON.
type task struct {
	Impl     string
	URL      string
	Account  string
	Worker   string
	Callers  int
	Duration time.Duration
}

// A tally is what one measuring process found.
type tally struct {
	Admissions int64
	Elapsed    time.Duration
	Latencies  histogram
	Mallocs    uint64 // heap objects allocated by the whole process
}

// runChild is a measuring process: it warms up, says "ready", waits for a line,
// measures, and writes its tally.
func runChild(text string) error {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return err
	}
	i, err := implOf(t.Impl)
	if err != nil {
		return err
	}
	s, err := i.open(setup{t.URL, t.Account, t.Worker, t.Callers})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := drive(s, t.Callers, min(200*time.Millisecond, t.Duration)); err != nil {
		return err
	}
	runtime.GC()
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && err != io.EOF {
		return err
	}
	result, err := drive(s, t.Callers, t.Duration)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// drive lets the callers be admitted and release in a loop for a while.
func drive(s session, callers int, d time.Duration) (tally, error) {
	var (
		over   atomic.Bool
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    tally
		failed error
		before runtime.MemStats
		after  runtime.MemStats
		ctx    = context.Background()
	)
	runtime.ReadMemStats(&before)
	start := time.Now()
	for caller := range callers {
		wg.Go(func() {
			var (
				latencies histogram
				n         int64
				err       error
			)
			for err == nil && (n == 0 || !over.Load()) { // once at least, however short the time
				asked := time.Now()
				if err = s.Admit(ctx, caller); err != nil {
					break
				}
				latencies.add(time.Since(asked))
				n++
				err = s.Release(ctx, caller)
			}
			mu.Lock()
			defer mu.Unlock()
			all.Admissions += n
			all.Latencies.merge(&latencies)
			if err != nil && failed == nil {
				failed = err
				over.Store(true)
			}
		})
	}
	time.AfterFunc(d, func() { over.Store(true) })
	wg.Wait()
	all.Elapsed = time.Since(start)
	runtime.ReadMemStats(&after)
	all.Mallocs = after.Mallocs - before.Mallocs
	return all, failed
}
