package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// asWorker marks the environment of a process that is to be a worker.
const asWorker = "FLEETLIMIT_FLEET_WORKER"

// Main makes this process a worker and does not return, if [Start] has made it. Else
// it returns at once.
func Main() {
	if os.Getenv(asWorker) == "" {
		return
	}
	redis.SetLogger(silence{}) // it tells of every connection that a test cuts
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, redisurl.Hide(err.Error()))
		os.Exit(1)
	}
	os.Exit(0)
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

const (
	reportEvery = 500 * time.Millisecond
	stall       = 250 * time.Millisecond
)

// A worker calls the API in a few loops, and says how that goes.
type worker struct {
	Setup
	http *http.Client
	out  *json.Encoder

	mu sync.Mutex
	Report
}

// serve is the life of a worker: it ends with in.
func serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	w := &worker{out: json.NewEncoder(out)}
	w.Errors, w.State = make(map[string]int), Resting
	if err := json.Unmarshal(first, &w.Setup); err != nil {
		return fmt.Errorf("reading the setup: %w", err)
	}
	if w.CallTimeout == 0 {
		w.CallTimeout = time.Minute
	}
	rdb, err := redisurl.Open(w.Redis)
	if err != nil {
		return err
	}
	defer rdb.Close()
	c, err := coordinator.New(rdb, w.Policy, coordinator.Options{
		APIKey: w.Key, Worker: w.Worker, RedisTimeout: w.RedisTimeout, WhenAway: w.WhenAway,
		Logger: slog.New(countAway{w}),
	})
	if err != nil {
		return err
	}
	profile := mavera.Profile()
	profile.BasePath = ""
	profile.Jobs = slices.DeleteFunc(profile.Jobs, func(j client.Job) bool {
		return !slices.ContainsFunc(w.Policy.Endpoints, func(e coordinator.Endpoint) bool { return e.Pattern == j.Start })
	})
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = 64
	transport, err := client.New(c, profile, client.Options{Base: base, OnAttempt: w.attempt})
	if err != nil {
		return err
	}
	w.http = transport.Client()

	ctx, stop := context.WithCancel(context.Background())
	var background, loops sync.WaitGroup
	background.Go(func() { w.tick(ctx) })
	stopLoops := func() {}
	for scanner := bufio.NewScanner(lines); scanner.Scan(); {
		switch command(scanner.Text()) {
		case work:
			var working context.Context
			working, stopLoops = context.WithCancel(ctx)
			w.become(Working, Footprint{})
			for endpoint, n := range w.Callers {
				for range n {
					loops.Go(func() { w.loop(working, endpoint) })
				}
			}
		case rest:
			stopLoops()
			loops.Wait()
			w.http.CloseIdleConnections()
			w.become(Resting, footprint())
		}
	}
	stopLoops()
	err = c.Close()
	loops.Wait()
	stop()
	background.Wait()
	w.http.CloseIdleConnections()
	rdb.Close()
	if err != nil {
		w.count(fmt.Sprintf("closing: %v", err))
	}
	w.become(Closed, footprint())
	return nil
}

// tick reports until ctx ends, and notices when this process is not run.
func (w *worker) tick(ctx context.Context) {
	ticker := time.NewTicker(stall / 5)
	defer ticker.Stop()
	last, reported := time.Now(), time.Time{}
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		w.mu.Lock()
		if now.Sub(last) > stall {
			w.Stalls++
		}
		last = now
		if now.Sub(reported) >= reportEvery {
			reported = now
			_ = w.out.Encode(w.Report) // the parent has gone: stdin ends as well
		}
		w.mu.Unlock()
	}
}

func (w *worker) become(s State, f Footprint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.State = s
	if s != Working {
		w.Rest = f
	}
	_ = w.out.Encode(w.Report)
}

// footprint waits a moment for goroutines that are about to end. It counts looks and not
// time, since on a busy machine there may be time and no processor for them to end.
func footprint() Footprint {
	var m runtime.MemStats
	f := Footprint{Goroutines: runtime.NumGoroutine(), Files: -1}
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		f.Goroutines = min(f.Goroutines, runtime.NumGoroutine())
	}
	runtime.GC()
	runtime.GC() // what finalizers have freed
	runtime.ReadMemStats(&m)
	f.Heap = m.HeapAlloc
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		f.Files = len(files)
	}
	return f
}

// loop calls one endpoint until ctx ends; a call under way is finished.
func (w *worker) loop(ctx context.Context, endpoint string) {
	for ctx.Err() == nil {
		begun := time.Now()
		call, cancel := context.WithTimeout(context.Background(), w.CallTimeout)
		err := w.do(call, endpoint)
		cancel()
		w.mu.Lock()
		w.Calls++
		w.Longest = max(w.Longest, time.Since(begun))
		w.mu.Unlock()
		if err == nil {
			w.mu.Lock()
			w.OK++
			w.mu.Unlock()
			continue
		}
		w.count(kind(err))
		if errors.Is(err, coordinator.ErrClosed) {
			return
		}
		time.Sleep(20 * time.Millisecond) // a caller that fails at once does not spin
	}
}

func (w *worker) count(what string) {
	w.mu.Lock()
	w.Errors[what]++
	w.mu.Unlock()
}

func (w *worker) attempt(client.Attempt) {
	w.mu.Lock()
	w.Sent++
	w.mu.Unlock()
}

// do is one call, and the polls of the job that it starts.
func (w *worker) do(ctx context.Context, endpoint string) error {
	answer, err := w.send(ctx, endpoint)
	if err != nil || endpoint != mavera.VideoAnalyses {
		return err
	}
	var job struct{ ID, Status string }
	for {
		if err := json.Unmarshal(answer, &job); err != nil {
			return fmt.Errorf("a job without JSON: %w", err)
		}
		if job.Status == "completed" || job.Status == "failed" {
			return nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if answer, err = w.send(ctx, "GET /video-analyses/"+job.ID); err != nil {
			return err
		}
	}
}

func (w *worker) send(ctx context.Context, endpoint string) ([]byte, error) {
	method, path, _ := strings.Cut(endpoint, " ")
	var body io.Reader
	if method == http.MethodPost {
		body = bytes.NewReader([]byte(`{"model":"mavera-1","persona_id":"p","input":"?","message":"?","topic":"?","video_url":"https://example.com/v.mp4"}`))
	}
	req, err := http.NewRequestWithContext(ctx, method, w.API+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.Key)
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%w %d", errStatus, resp.StatusCode)
	}
	return answer, err
}

var errStatus = errors.New("status")

// kind names what went wrong with a call.
func kind(err error) string {
	var wait *coordinator.WaitError
	var network *net.OpError
	switch {
	case errors.Is(err, errStatus):
		return err.Error()
	case errors.Is(err, coordinator.ErrClosed):
		return "closed"
	case errors.Is(err, coordinator.ErrLeaseLost):
		return "lease lost"
	case errors.Is(err, coordinator.ErrRedisAway):
		return "Redis away"
	case errors.As(err, &wait):
		return "gate " + string(wait.Gate)
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &network),
		strings.Contains(err.Error(), "connection"):
		return "network"
	}
	return err.Error()
}

// countAway is a logger that counts how often Redis went away.
type countAway struct{ w *worker }

func (h countAway) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h countAway) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h countAway) WithGroup(string) slog.Handler                { return h }
func (h countAway) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "Redis does not answer") {
		h.w.mu.Lock()
		h.w.Away++
		h.w.mu.Unlock()
	}
	return nil
}
