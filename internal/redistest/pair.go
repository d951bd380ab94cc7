package redistest

import (
	"context"
	"strconv"
	"testing"
)

// Pair is a master and its replica.
type Pair struct{ Master, Replica *Node }

// StartPair starts a master and its replica, of the test's own.
func StartPair(t testing.TB) *Pair {
	t.Helper()
	master := newNode(t, own(t, "--repl-diskless-sync-delay", "0"))
	replica := newNode(t, own(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port)))
	replica.awaitReplication(t)
	return &Pair{master, replica}
}

// Promote makes the replica a master that knows all that was written until now. The
// old master goes on, and what is written to it is lost to the new one.
func (p *Pair) Promote(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	if n, err := p.Master.Client.Wait(ctx, 1, 0).Result(); err != nil || n != 1 {
		t.Fatalf("WAIT: %d replicas, %v", n, err)
	}
	must(t, p.Replica.Client.Do(ctx, "REPLICAOF", "NO", "ONE").Err())
}
