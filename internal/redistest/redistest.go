// Package redistest gives tests a real Redis: the one that REDIS_URL names, or
// servers of their own, started from the PATH and ended with the test: one server,
// with TLS or with users, or several behind Sentinels or in a cluster. All of them
// are processes that can be killed, frozen and started again.
package redistest

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redisurl"
)

// Server is a running Redis.
type Server struct {
	// URL is for redisurl.Open. It may carry a password: do not print it.
	URL string
	// Own is true for a server that the test started and nobody else uses.
	Own bool
	// Port is that of a server of the test's own, on 127.0.0.1.
	Port int

	path, dir string
	args      []string
	process   *os.Process
	stop      func() // nil: it is not the test's to stop
}

// Start returns a Redis for the test. Extra arguments go to the server, so that
// a test with extra arguments always gets a server of its own. A test fails
// where there is neither REDIS_URL nor redis-server; it is never skipped.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if url := os.Getenv("REDIS_URL"); url != "" && len(args) == 0 {
		return &Server{URL: url}
	}
	return own(t, args...)
}

// own starts a server that ends with the test.
func own(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := Launch(t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Launch starts a server on a free port of 127.0.0.1, for programs that are no
// tests: it ends with [Server.Stop], or with the program. What it saves goes to
// dir.
func Launch(dir string, args ...string) (*Server, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("no redis-server on the PATH and no REDIS_URL: `make test` installs one, or says how")
	}
	var trouble error
	for range attempts {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		var s *Server
		if s, trouble = launch(path, dir, port, args); trouble == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("redis-server did not start: %w", trouble)
}

// Restart starts a server that was stopped once more, on the same port, with what
// it had saved.
func (s *Server) Restart() error {
	s.Stop()
	return s.run(s.arguments())
}

// Freeze stops a server of the test's own without ending it (SIGSTOP): it goes on
// to accept connections and answers nothing.
func (s *Server) Freeze() error { return freeze(s.process) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() error { return thaw(s.process) }

const (
	// attempts is how many ports are tried: between the choice of a free one and
	// its use, somebody else may take it.
	attempts = 5

	// patience is for a machine that is busy with something else: what a server does
	// counts, not how soon it is ready.
	patience = 2 * time.Minute
)

// launch starts a server and waits until it is ready.
func launch(path, dir string, port int, args []string) (*Server, error) {
	s := &Server{
		URL: fmt.Sprintf("redis://127.0.0.1:%d", port), Own: true, Port: port,
		path: path, dir: dir, args: args,
	}
	return s, s.run(s.arguments())
}

// arguments puts a configuration file, which must stand first, before all others.
func (s *Server) arguments() []string {
	file, rest := []string(nil), s.args
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "--") {
		file, rest = rest[:1], rest[1:]
	}
	return slices.Concat(file, []string{
		"--port", fmt.Sprint(s.Port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.dir, "--logfile", "",
	}, rest)
}

// run starts the server's process.
func (s *Server) run(args []string) error {
	cmd := exec.Command(s.path, args...)
	dieWithParent(cmd)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout // os/exec gives both the same pipe
	started, drained, gone := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		// The kernel takes the end of the thread that started a process for the
		// end of its parent, so this goroutine keeps its thread until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			<-drained
			_ = cmd.Wait() // it was killed
			close(gone)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	log, ready := readLog(stdout)
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, stdout) // a full pipe would stop the server
	}()
	s.process = cmd.Process
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-gone
	})
	if !ready {
		inTime := late.Stop()
		s.Stop()
		if !inTime {
			return fmt.Errorf("on port %d: not ready after %v: %s", s.Port, patience, log)
		}
		return fmt.Errorf("on port %d: %s", s.Port, log)
	}
	return nil
}

// readLog reads what a server writes until it is ready, or gone. Only one that
// has got its port is ever ready: no other server can be mistaken for it.
func readLog(stdout io.Reader) (log string, ready bool) {
	var all strings.Builder
	for lines := bufio.NewReader(stdout); ; {
		line, err := lines.ReadString('\n')
		all.WriteString(line)
		switch {
		case strings.Contains(line, "eady to accept connections"), strings.Contains(line, "Sentinel ID is"):
			return all.String(), true
		case err != nil:
			return all.String(), false
		}
	}
}

// Client returns a client of one server, closed when the test ends.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	return Open(t, s.URL).(*redis.Client)
}

// Open returns a client of whatever a URL names, closed when the test ends.
func Open(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	rdb, err := redisurl.Open(url)
	if err != nil {
		t.Fatalf("the URL of Redis: %v", err)
	}
	t.Cleanup(func() { rdb.Close() })
	return rdb
}

// Stop kills a server that the test started, as a crash would. Stopping twice
// changes nothing; a server that REDIS_URL names goes on.
func (s *Server) Stop() {
	if s.stop != nil {
		s.stop()
	}
}

// Account returns a name that no other test uses: the server may be shared.
func Account(t testing.TB) string {
	t.Helper()
	return "test-" + strings.ToLower(rand.Text()[:12])
}
