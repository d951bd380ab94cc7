package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// serving starts a worker that never ends, and returns what it has said of itself.
func serving(t *testing.T, env []string, args ...string) (r *running, begun struct{ Account, Worker, HTTP string }) {
	t.Helper()
	r = startDemo(t, env, append([]string{"serve", "-http", "127.0.0.1:0"}, args...)...)
	line := r.readUntil(t, "the worker has begun")
	if err := json.Unmarshal([]byte(line), &begun); err != nil || begun.Account == "" || begun.Worker == "" {
		t.Fatalf("the log says %q: %v", line, err)
	}
	return r, begun
}

// read gets a page that must be there.
func read(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v\n%s", url, resp.Status, err, text)
	}
	return string(text)
}

// A viewer watches a live page, until the test ends if nobody ends it earlier.
type viewer struct{ lines *bufio.Scanner }

func watch(t *testing.T, page string) viewer {
	t.Helper()
	resp, err := http.Get(page + "events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	v := viewer{bufio.NewScanner(resp.Body)}
	v.lines.Buffer(nil, 1<<20)
	return v
}

// await reads until the page shows all of these workers, by the beginnings of their names.
func (v viewer) await(t *testing.T, workers ...string) {
	t.Helper()
	for v.lines.Scan() {
		if !slices.ContainsFunc(workers, func(name string) bool {
			return !strings.Contains(v.lines.Text(), `"worker":"`+name)
		}) {
			return
		}
	}
	t.Fatalf("the page ended without %q: %v", workers, v.lines.Err())
}

// metric finds a sample whose labels hold the text.
func metric(metrics, name, label string) float64 {
	m := regexp.MustCompile(`(?m)^` + name + `\{[^}]*` + regexp.QuoteMeta(label) + `[^}]*\} (\S+)$`).FindStringSubmatch(metrics)
	if m == nil {
		return -1
	}
	x, _ := strconv.ParseFloat(m[1], 64)
	return x
}

func TestAServingWorkerWorksShowsItselfAndEnds(t *testing.T) {
	api, url := serveAPI(t, mockapi.Config{TimeScale: 0.005})
	key := redistest.Account(t)
	r, begun := serving(t, []string{keyVariable + "=" + key, redisVariable + "=" + redistest.Start(t).URL},
		"-upstream", url, "-mix", "GET /personas=2,POST /mave/chat=1")
	home := "http://" + begun.HTTP + "/"

	if text := read(t, home+"healthz"); text != "ok\n" {
		t.Errorf("/healthz answers %q", text)
	}
	if text := read(t, home); !strings.Contains(text, "<html") || !strings.Contains(text, "page.js") {
		t.Errorf("the page is %q", text)
	}
	v := watch(t, home)
	v.await(t, begun.Worker)

	var told string
	redistest.Eventually(t, "the metrics tell of the work", func() error {
		told = read(t, home+"metrics")
		personas := metric(told, "fleetlimit_requests_total", `endpoint="other"`) // it has no slots
		chats := metric(told, "fleetlimit_requests_total", `endpoint="POST /mave/chat"`)
		used := metric(told, "fleetlimit_used_requests", `account="`+begun.Account+`"`)
		if personas < 3 || chats < 1 || used < 4 {
			return fmt.Errorf("%v personas, %v chats, %v used", personas, chats, used)
		}
		return nil
	})
	stats := api.Stats()
	if stats.RequestsByEndpoint[mockapi.GetPersonas] < 3 || stats.RequestsByEndpoint[mavera.Chat] < 1 || stats.Keys != 1 {
		t.Errorf("the API has seen %+v", stats)
	}

	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	said := r.said.String()
	if !strings.Contains(said, "the worker ends") || strings.Contains(said, "a request failed") {
		t.Errorf("it said %s", said)
	}
	if strings.Contains(said+r.stdout.String()+told, key) {
		t.Error("the key shows")
	}
	if stats := api.Stats(); stats.Responses429 != 0 || stats.Unauthorized != 0 || stats.NotFound != 0 {
		t.Errorf("the API has seen %+v", stats)
	}
}

// Two that serve with one key are one account, under the name that they are given.
func TestServingWorkersShareAnAccount(t *testing.T) {
	_, url := serveAPI(t, mockapi.Config{NoLatency: true})
	account := redistest.Account(t)
	args := []string{"-redis", redistest.Start(t).URL, "-upstream", url, "-api-key", testKey, "-account", account, "-mix", "GET /personas=1"}
	one, first := serving(t, nil, args...)
	two, second := serving(t, nil, args...)
	if first.Account != account || second.Account != account || first.Worker == second.Worker {
		t.Errorf("they are %+v and %+v", first, second)
	}
	v := watch(t, "http://"+first.HTTP+"/")
	v.await(t, first.Worker, second.Worker)
	for _, r := range []*running{one, two} {
		if err := r.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if code := r.end(t); code != exitOK {
			t.Errorf("exit code %d:\n%s", code, r.said.String())
		}
	}
}

func TestAStrangerUsesTheKeyUntilItIsStopped(t *testing.T) {
	api, url := serveAPI(t, mockapi.Config{NoLatency: true})
	r := startDemo(t, []string{keyVariable + "=" + testKey}, "stranger", "-upstream", url, "-rate", "600")
	redistest.Eventually(t, "three requests have arrived", func() error {
		if stats := api.Stats(); stats.RequestsByEndpoint[mockapi.GetPersonas] < 3 {
			return fmt.Errorf("the API has seen %+v", stats)
		}
		return nil
	})
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	// One may have been under way when it was stopped.
	m := regexp.MustCompile(`^a stranger has sent (\d+) requests; by status: map\[(?:0:1 )?200:\d+\]\n$`).FindStringSubmatch(r.said.String())
	stats := api.Stats()
	if m == nil || stats.Keys != 1 || stats.Unauthorized != 0 || stats.Requests != stats.RequestsByEndpoint[mockapi.GetPersonas] {
		t.Fatalf("it said %q, the API has seen %+v", r.said.String(), stats)
	}
	if sent, _ := strconv.ParseInt(m[1], 10, 64); sent != stats.Requests && sent != stats.Requests+1 {
		t.Errorf("it said %q, the API has seen %d requests", r.said.String(), stats.Requests)
	}
}

func TestTheDemoServesALivePageWhileItRuns(t *testing.T) {
	_, url := serveAPI(t, mockapi.Config{NoLatency: true})
	r := startDemo(t, nil, "-json", "-requests", "100000", "-upstream", url, "-http", "127.0.0.1:0")
	home := regexp.MustCompile(`http://127\.0\.0\.1:\d+/`).FindString(r.readUntil(t, "the live page is at"))
	if text := read(t, home); !strings.Contains(text, "<html") {
		t.Errorf("the page is %q", text)
	}
	v := watch(t, home)
	v.await(t, "w1-")
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := r.end(t); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	if _, err := http.Get(home); err == nil {
		t.Error("the page is still there")
	}
}
