//go:build unix

package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A firstHeld gives out the permit that is held already, and then new ones.
type firstHeld struct {
	*coordinator.Coordinator
	held *coordinator.Permit
}

func (f *firstHeld) Acquire(ctx context.Context, r coordinator.Request) (*coordinator.Permit, error) {
	if p := f.held; p != nil {
		f.held = nil
		return p, nil
	}
	return f.Coordinator.Acquire(ctx, r)
}

// sendAfterFreeze is a process that is stopped between the grant and the request.
func sendAfterFreeze(url, account string) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		panic(err)
	}
	c, err := coordinator.New(redis.NewClient(opts), policy, coordinator.Options{Account: account, Worker: "frozen"})
	if err != nil {
		panic(err)
	}
	other, err := c.Acquire(context.Background(), coordinator.Request{Endpoint: chat})
	if err != nil {
		panic(err)
	}
	p, err := c.Acquire(context.Background(), coordinator.Request{Endpoint: chat})
	if err != nil {
		panic(err)
	}
	transport, err := client.New(&firstHeld{c, p}, client.Profile{}, client.Options{})
	if err != nil {
		panic(err)
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("holding")
	api, err := in.ReadString('\n')
	if err != nil {
		return // the parent has gone
	}
	// The first thing that runs after the freeze: nothing has had time to tell.
	fmt.Println("valid:", other.Valid())
	resp, err := transport.Client().Post(strings.TrimSpace(api)+"/mave/chat", "application/json", strings.NewReader("{}"))
	if err == nil {
		resp.Body.Close()
	}
	fmt.Println("sent:", err)
	io.Copy(io.Discard, in)
}

// A process that was frozen for longer than its leases live learns that it lost them
// before it sends anything more, and asks anew. A worker that trusts its permits until
// the next heartbeat would send at once, as a fourth call on three slots.
func TestFrozenProcessSendsNothingOnALostLease(t *testing.T) {
	server, account := redistest.Start(t), redistest.Account(t)
	heir := join(t, server.Client(t), account, "heir")
	var arrived atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
	t.Cleanup(api.Close)

	self, err := os.Executable()
	mustDo(t, err)
	frozen := exec.Command(self)
	frozen.Env = append(os.Environ(), "FLEETLIMIT_TEST_FREEZE="+server.URL, "FLEETLIMIT_TEST_ACCOUNT="+account)
	stdin, err := frozen.StdinPipe()
	mustDo(t, err)
	stdout, err := frozen.StdoutPipe()
	mustDo(t, err)
	mustDo(t, frozen.Start())
	t.Cleanup(func() {
		stdin.Close()
		frozen.Process.Kill()
		frozen.Wait()
	})
	says := bufio.NewReader(stdout)
	if line, err := says.ReadString('\n'); err != nil || line != "holding\n" {
		t.Fatalf("the worker said %q, %v", line, err)
	}

	mustDo(t, frozen.Process.Signal(syscall.SIGSTOP))
	var permits []*coordinator.Permit
	for range 3 { // the third slot is free, the other two come after the lease's second
		permits = append(permits, acquire(t, heir, chat))
	}
	if _, err := io.WriteString(stdin, api.URL+"\n"); err != nil {
		t.Fatal(err)
	}
	mustDo(t, frozen.Process.Signal(syscall.SIGCONT))
	if line, err := says.ReadString('\n'); err != nil || line != "valid: "+coordinator.ErrLeaseLost.Error()+"\n" {
		t.Errorf("the worker said %q, %v: want that its lease is lost", line, err)
	}
	// It asks anew, and has to wait: the heir has all slots.
	redistest.Eventually(t, "the frozen worker waits for a slot", func() error {
		s, err := heir.State(context.Background())
		if err == nil && s.Endpoints[0].Waiting != 1 {
			err = errors.New("it does not")
		}
		return err
	})
	if n := arrived.Load(); n != 0 {
		t.Fatalf("%d requests were sent on a lost lease", n)
	}
	for _, p := range permits {
		p.Release()
	}
	if line, err := says.ReadString('\n'); err != nil || line != "sent: <nil>\n" {
		t.Errorf("the worker said %q, %v", line, err)
	}
	if n := arrived.Load(); n != 1 {
		t.Errorf("%d requests arrived, want 1", n)
	}
}
