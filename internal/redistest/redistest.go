// Package redistest gives tests a real Redis: the one that REDIS_URL names, or a
// server of their own, started from the PATH and ended with the test.
package redistest

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is a running Redis.
type Server struct {
	// URL is for redis.ParseURL. It may carry a password: do not print it.
	URL string
	// Own is true for a server that the test started and nobody else uses.
	Own bool

	stop func() // nil: it is not the test's to stop
}

// Start returns a Redis for the test. Extra arguments go to the server, so that
// a test with extra arguments always gets a server of its own. A test fails
// where there is neither REDIS_URL nor redis-server; it is never skipped.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if url := os.Getenv("REDIS_URL"); url != "" && len(args) == 0 {
		return &Server{URL: url}
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("no redis-server on the PATH and no REDIS_URL: `make test` installs one, or says how")
	}
	var trouble error
	for range attempts {
		var s *Server
		if s, trouble = launch(path, t.TempDir(), freePort(t), args); trouble == nil {
			t.Cleanup(s.Stop)
			return s
		}
	}
	t.Fatalf("redis-server did not start: %v", trouble)
	return nil
}

const (
	// attempts is how many ports are tried: between the choice of a free one and
	// its use, somebody else may take it.
	attempts = 5

	patience = 30 * time.Second
)

// launch starts a server and waits until it is ready.
func launch(path, dir string, port int, args []string) (*Server, error) {
	cmd := exec.Command(path, append([]string{
		"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir, "--logfile", "",
	}, args...)...)
	dieWithParent(cmd)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
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
		return nil, err
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	log, ready := readLog(stdout)
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, stdout) // a full pipe would stop the server
	}()
	s := &Server{URL: fmt.Sprintf("redis://127.0.0.1:%d", port), Own: true}
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-gone
	})
	if !ready {
		s.Stop()
		return nil, fmt.Errorf("on port %d: %s", port, log)
	}
	return s, nil
}

// readLog reads what a server writes until it is ready, or gone. Only one that
// has got its port is ever ready: no other server can be mistaken for it.
func readLog(stdout io.Reader) (log string, ready bool) {
	var all strings.Builder
	for lines := bufio.NewReader(stdout); ; {
		line, err := lines.ReadString('\n')
		all.WriteString(line)
		switch {
		case strings.Contains(line, "eady to accept connections"):
			return all.String(), true
		case err != nil:
			return all.String(), false
		}
	}
}

// Client returns a client of the server, closed when the test ends.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(s.URL)
	if err != nil {
		t.Fatal("REDIS_URL is no URL of a Redis server") // it may hold a password
	}
	rdb := redis.NewClient(opts)
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

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
