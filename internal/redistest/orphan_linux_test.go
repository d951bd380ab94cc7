package redistest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain lets the test binary be one that starts a server and is then killed.
func TestMain(m *testing.M) {
	dir := os.Getenv("REDISTEST_ORPHAN_DIR")
	if dir == "" {
		os.Exit(m.Run())
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		panic(err)
	}
	s, err := launch(path, dir, 0, []string{"--unixsocket", "redis.sock"})
	if err != nil {
		panic(err)
	}
	fmt.Println(s.URL)
	select {}
}

func TestAServerEndsWithATestBinaryThatIsKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Whoever has inherited the writing end is alive: its reader sees the end
	// only when they have all gone.
	alive, inherited, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := alive.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), "REDISTEST_ORPHAN_DIR="+t.TempDir())
	cmd.ExtraFiles = []*os.File{inherited}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inherited.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the binary did not start its server: %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := io.Copy(io.Discard, alive); err != nil {
		t.Errorf("waiting for the server's end: %v", err)
	}
}
