// Package redistest gives tests a real Redis: the one that REDIS_URL names, or a
// server of their own, started from the PATH and ended with the test.
package redistest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
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

	process *exec.Cmd
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
	port := freePort(t)
	s := &Server{URL: fmt.Sprintf("redis://127.0.0.1:%d", port), Own: true}
	var log bytes.Buffer
	s.process = exec.Command(path, append([]string{
		"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir(),
	}, args...)...)
	s.process.Stdout, s.process.Stderr = &log, &log
	dieWithParent(s.process)
	if err := s.process.Start(); err != nil {
		t.Fatalf("redis-server: %v", err)
	}
	t.Cleanup(s.Stop)

	rdb := s.Client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		err := rdb.Ping(ctx).Err()
		if err == nil || strings.HasPrefix(err.Error(), "NOAUTH") {
			return s
		}
		select {
		case <-ctx.Done():
			s.Stop()
			t.Fatalf("redis-server does not answer: %v\n%s", err, log.String())
		case <-time.After(10 * time.Millisecond):
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

// Stop ends a server that the test started. Stopping twice changes nothing.
func (s *Server) Stop() {
	if s.process != nil {
		s.process.Process.Kill()
		s.process.Wait()
		s.process = nil
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
