package redistest

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestServerAnswersAndEndsWithTheTest(t *testing.T) {
	var url string
	t.Run("running", func(t *testing.T) {
		s := Start(t, "--maxclients", "50")
		url = s.URL
		if err := s.Client(t).Ping(context.Background()).Err(); err != nil {
			t.Error(err)
		}
	})
	s := Server{URL: url}
	if err := s.Client(t).Ping(context.Background()).Err(); err == nil {
		t.Error("the server runs on after the test")
	}
}

func TestTwoServersAreTwoAndBeginEmpty(t *testing.T) {
	a, b := own(t).Client(t), own(t).Client(t)
	if err := a.Set(t.Context(), "key", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.Get(t.Context(), "key").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("what one server was told, the other answers: %v", err)
	}
}

func TestArgumentsReachTheServer(t *testing.T) {
	got, err := Start(t, "--maxmemory", "7mb").Client(t).ConfigGet(t.Context(), "maxmemory").Result()
	if err != nil || got["maxmemory"] != "7340032" {
		t.Errorf("maxmemory is %v, error %v", got, err)
	}
}

func TestStopEndsTheServerOnce(t *testing.T) {
	s := own(t)
	s.Stop()
	s.Stop()
	if err := s.Client(t).Ping(t.Context()).Err(); err == nil {
		t.Error("a server that was stopped answers")
	}
}

func TestAServerIsRestartedWithWhatItHadSaved(t *testing.T) {
	s := own(t, "--dbfilename", "saved.rdb")
	rdb := s.Client(t)
	if err := rdb.Set(t.Context(), "key", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if got, err := rdb.Get(t.Context(), "key").Result(); got != "1" {
		t.Errorf("key is %q, %v", got, err)
	}
}

// A server on the port of one that is stopped for a while would meet the other's clients.
func TestAPortIsGivenOutOnce(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	if reserve(port) {
		t.Errorf("port %d is given out again, though its owner may start a server there yet", port)
	}
}

func TestAServerThatCannotStartSaysWhy(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	path := lookPath(t)
	first, err := launch(path, t.TempDir(), port, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Stop()
	if s, err := launch(path, t.TempDir(), port, nil); err == nil {
		s.Stop()
		t.Error("two servers have one port")
	} else if !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %q does not say that the port is in use", err)
	}
}

func TestRedisURLIsUsedAndLeftRunning(t *testing.T) {
	mine := own(t)
	t.Setenv("REDIS_URL", mine.URL)
	s := Start(t)
	if s.Own || s.URL != mine.URL {
		t.Errorf("Start gave %q, its own %t; want %q", s.URL, s.Own, mine.URL)
	}
	s.Stop()
	if err := mine.Client(t).Ping(t.Context()).Err(); err != nil {
		t.Errorf("the shared server was stopped: %v", err)
	}
}

func TestWithoutRedisURLTheServerIsTheTestsOwn(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	if s := Start(t); !s.Own {
		t.Errorf("the server at %q is not the test's own", s.URL)
	}
}

func TestAccountsAreUnique(t *testing.T) {
	if a, b := Account(t), Account(t); a == b {
		t.Errorf("%q twice", a)
	}
}

func lookPath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	return path
}
