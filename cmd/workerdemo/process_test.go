package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// asDemo makes the test binary the program itself, workers included: they are
// started from the same file and inherit the environment.
const asDemo = "WORKERDEMO_TEST_AS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" {
		main()
	}
	os.Exit(m.Run())
}

// patience keeps a broken demo from hanging the tests.
const patience = 2 * time.Minute

// A running demo is a process under test, with its children.
type running struct {
	*exec.Cmd
	stdout bytes.Buffer
	stderr *bufio.Reader
	said   strings.Builder // what stderr has told so far
	alive  *os.File
}

func startDemo(t *testing.T, env []string, args ...string) *running {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r := &running{Cmd: exec.CommandContext(ctx, self, args...)}
	r.Env = append(append(os.Environ(), asDemo+"=1"), env...)
	r.Stdout = &r.stdout
	stderr, err := r.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stderr = bufio.NewReader(stderr)
	// Every process of the demo inherits the writing end: the reader sees its
	// end only when all of them have gone.
	alive, inherited, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { alive.Close() })
	if err := alive.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	r.alive, r.ExtraFiles = alive, []*os.File{inherited}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	inherited.Close()
	return r
}

// readUntil reads stderr until a line has the text, and returns that line.
func (r *running) readUntil(t *testing.T, text string) string {
	t.Helper()
	for {
		line, err := r.stderr.ReadString('\n')
		r.said.WriteString(line)
		if strings.Contains(line, text) {
			return line
		}
		if err != nil {
			t.Fatalf("stderr ended without %q:\n%s", text, r.said.String())
		}
	}
}

// end waits for the exit code, and for the end of every process.
func (r *running) end(t *testing.T) int {
	t.Helper()
	if _, err := io.Copy(&r.said, r.stderr); err != nil {
		t.Error(err)
	}
	_ = r.Wait() // the exit code tells
	if _, err := io.Copy(io.Discard, r.alive); err != nil {
		t.Errorf("a process has stayed behind: %v", err)
	}
	return r.ProcessState.ExitCode()
}

func (r *running) summary(t *testing.T) summary {
	t.Helper()
	var s summary
	if err := json.Unmarshal(r.stdout.Bytes(), &s); err != nil {
		t.Fatalf("stdout is no JSON: %v\n%s\nstderr:\n%s", err, r.stdout.String(), r.said.String())
	}
	return s
}

func TestTheDemoSucceeds(t *testing.T) {
	const quick = "POST /responses=6,POST /mave/chat=3"
	for name, args := range map[string][]string{
		"by itself":         {"-requests", "20"},
		"resetting window":  {"-requests", "30", "-window", "fixed", "-mix", quick},
		"many workers":      {"-requests", "40", "-workers", "16", "-mix", quick},
		"a real Redis":      {"-requests", "30", "-mix", quick, "-redis", redistest.Start(t).URL},
		"every other route": {"-requests", "9", "-mix", "GET /personas=1,POST /generations=1,POST /focus-groups=1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := startDemo(t, nil, append(args, "-json")...)
			if code := r.end(t); code != exitOK {
				t.Errorf("exit code %d", code)
			}
			s := r.summary(t)
			if fmt.Sprint(s.Requests) != args[1] || s.Succeeded != s.Requests || s.Failed != 0 || s.Responses429 != 0 ||
				*s.LimitViolations != 0 || *s.SlotViolations != 0 || len(s.MaxInFlight) == 0 || s.DurationSeconds <= 0 || s.Utilization <= 0 {
				t.Errorf("%+v\nstderr:\n%s", s, r.said.String())
			}
		})
	}
}

func TestAWorkerIsKilledAndTheOthersFinish(t *testing.T) {
	r := startDemo(t, nil, "-json", "-kill", "-requests", "60", "-redis", redistest.Start(t).URL)
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	s := r.summary(t)
	if s.Killed == nil || s.Killed.TakenOver == 0 || s.Killed.SlotsBackSeconds == nil || s.Succeeded != 60 {
		t.Errorf("%+v, killed: %+v\nstderr:\n%s", s, s.Killed, r.said.String())
	}
	for _, w := range s.PerWorker {
		if died := w.Worker == s.Killed.Worker; died != (w.Fate == "killed") {
			t.Errorf("%+v", w)
		}
	}
}

// serveAPI is an API that the demo does not know to be the mock.
func serveAPI(t *testing.T, cfg mockapi.Config) (api *mockapi.API, url string) {
	t.Helper()
	api, err := mockapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/v9", api))
	t.Cleanup(func() { api.Close(); server.Close() })
	return api, server.URL + "/v9"
}

func TestAnotherAPIIsServedBelowItsBaseURL(t *testing.T) {
	api, url := serveAPI(t, mockapi.Config{TimeScale: 0.005})
	r := startDemo(t, []string{keyVariable + "=" + testKey}, "-json", "-requests", "20", "-upstream", url)
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	s := r.summary(t)
	if s.Succeeded != 20 || s.LimitViolations != nil || s.SlotViolations != nil || s.MaxInFlight != nil || s.Responses429 != 0 {
		t.Errorf("%+v\nstderr:\n%s", s, r.said.String())
	}
	stats := api.Stats()
	if stats.Requests != int64(s.Sent) || stats.NotFound != 0 || stats.Responses429 != 0 || stats.RequestsByEndpoint[mavera.VideoAnalyses] != 2 {
		t.Errorf("the API has seen %+v", stats)
	}
	if strings.Contains(r.said.String()+r.stdout.String(), testKey) {
		t.Error("the key shows")
	}
}

func TestAnAPIThatAnswers429MakesTheDemoFail(t *testing.T) {
	_, url := serveAPI(t, mockapi.Config{NoLatency: true, Faults: []mockapi.Fault{{Kind: mockapi.FaultSurprise429, RetryAfter: time.Second}}})
	r := startDemo(t, nil, "-json", "-requests", "5", "-mix", "POST /responses=1", "-upstream", url)
	if code := r.end(t); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if s := r.summary(t); s.Succeeded != 5 || s.Responses429 != 1 {
		t.Errorf("%+v", s)
	}
}

// endless is a demo that is far from its end, with a key on its command line.
func endless(t *testing.T) *running {
	t.Helper()
	_, url := serveAPI(t, mockapi.Config{Tier: "starter", TimeScale: 0.1})
	r := startDemo(t, nil, "-json", "-requests", "100000", "-tier", "starter", "-upstream", url, "-api-key", testKey)
	r.readUntil(t, "done ·")
	return r
}

var workerPID = regexp.MustCompile(`w\d+ is process (\d+)`)

func TestCtrlCEndsEveryProcess(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			r := endless(t)
			workers := workerPID.FindAllStringSubmatch(r.said.String(), -1)
			if len(workers) != 4 {
				t.Errorf("%d workers were started", len(workers))
			}
			if runtime.GOOS == "linux" {
				for _, w := range workers {
					line, err := os.ReadFile("/proc/" + w[1] + "/cmdline")
					if err != nil || strings.Contains(string(line), testKey) {
						t.Errorf("command line of a worker: %q, %v", line, err)
					}
				}
			}
			if err := r.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if code := r.end(t); code != exitInterrupted {
				t.Errorf("exit code %d", code)
			}
			if s := r.summary(t); !s.Interrupted || s.Failed != 0 {
				t.Errorf("%+v", s)
			}
			if strings.Contains(r.said.String()+r.stdout.String(), testKey) {
				t.Error("the key shows")
			}
		})
	}
}

func TestADemoThatIsKilledLeavesNoWorker(t *testing.T) {
	r := endless(t)
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.end(t)
}

func TestWorkersAloneShareTheBudgetOfAMockAlone(t *testing.T) {
	mock := startDemo(t, nil, "upstream", "-addr", "127.0.0.1:0", "-tier", "basic")
	_, rest, _ := strings.Cut(mock.readUntil(t, "listens on"), "listens on ")
	url, _, _ := strings.Cut(rest, " ")
	key := keyVariable + "=" + redistest.Account(t) // an account that no other test uses
	redis := redistest.Start(t).URL
	var workers []*running
	for range 3 {
		workers = append(workers, startDemo(t, []string{key}, "worker", "-json", "-requests", "15", "-tier", "basic",
			"-mix", "POST /responses=4,POST /mave/chat=1", "-redis", redis, "-upstream", url))
	}
	for _, w := range workers {
		if code := w.end(t); code != exitOK {
			t.Errorf("exit code %d:\n%s", code, w.said.String())
		}
		if s := w.summary(t); s.Workers != 1 || s.Succeeded != 15 {
			t.Errorf("%+v", s)
		}
	}
	if err := mock.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := mock.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if want := "45 requests, 429s: 0, violations of the limit: 0, of slots: 0, of pauses: 0"; !strings.Contains(mock.said.String(), want) {
		t.Errorf("the mock says %q", mock.said.String())
	}
}

func TestExitCodesOfWhatCannotStart(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"-h", exitOK, ""},
		{"worker -h", exitOK, ""},
		{"upstream -h", exitOK, ""},
		{"serve -h", exitOK, ""},
		{"stranger -h", exitOK, ""},
		{"-workers none", exitUsage, `-workers "none"`},
		{"worker", exitUsage, "-redis"},
		{"worker -redis redis://127.0.0.1:1", exitUsage, "-upstream"},
		{"worker -redis redis://127.0.0.1:1 -upstream http://127.0.0.1:1", exitUsage, "-api-key"},
		{"upstream -time-scale 0", exitUsage, `-time-scale "0"`},
		{"serve", exitUsage, "-upstream"},
		{"serve -upstream http://127.0.0.1:1", exitUsage, "-redis"},
		{"serve -upstream http://127.0.0.1:1 -redis redis://127.0.0.1:1", exitUsage, "-api-key"},
		{"serve -upstream http://127.0.0.1:1 -redis redis://127.0.0.1:1 -api-key k -http nowhere", exitFailed, `-http "nowhere"`},
		{"stranger", exitUsage, "-upstream"},
		{"stranger -upstream http://127.0.0.1:1", exitUsage, "-api-key"},
		{"stranger -upstream http://127.0.0.1:1 -api-key k -rate 601", exitUsage, `-rate "601"`},
		{"-http 0.0.0.0:0", exitUsage, "other machines"},
		{"-redis redis://:secret@127.0.0.1:1", exitFailed, `-redis "redis://***@127.0.0.1:1" does not answer`},
		{"upstream -addr nowhere", exitFailed, "nowhere"},
	} {
		r := startDemo(t, []string{keyVariable + "=", redisVariable + "="}, strings.Fields(test.args)...)
		if code := r.end(t); code != test.code || !strings.Contains(r.said.String(), test.says) || strings.Contains(r.said.String(), "secret") {
			t.Errorf("%s: exit code %d, stderr %q", test.args, code, r.said.String())
		}
		if test.code == exitOK && !strings.Contains(r.stdout.String(), "Usage:") {
			t.Errorf("%s: no help on stdout", test.args)
		}
	}
}

func TestGetAnswersAContainerAboutItself(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusNotFound)
		}
		io.WriteString(w, "ok\n")
	}))
	defer api.Close()
	for path, want := range map[string]int{api.URL + "/healthz": exitOK, api.URL + "/nowhere": exitFailed, "http://127.0.0.1:1/": exitFailed, ":": exitUsage} {
		d := startDemo(t, nil, "get", path)
		if code := d.end(t); code != want {
			t.Errorf("get %s: exit code %d, want %d\n%s", path, code, want, d.said.String())
		}
		if want == exitOK && d.stdout.String() != "ok\n" {
			t.Errorf("get %s wrote %q", path, d.stdout.String())
		}
	}
	if code := startDemo(t, nil, "get").end(t); code != exitUsage {
		t.Errorf("get without a URL: exit code %d", code)
	}
}
