package integration

import (
	"context"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// A Redis that crashes comes back with its last dump, as one does that is configured as it
// comes: what it granted since is told to it by the workers.
func TestARedisThatStartsWithAnOldDumpIsToldTheRest(t *testing.T) {
	t.Parallel()
	const limit, before, since = 60, 10, 40
	ctx := context.Background()
	server := redistest.Start(t, "--save", "3600 1000000")
	account := redistest.Account(t)
	forgot := make(chan struct{}, 10)
	var workers []*coordinator.Coordinator
	for _, name := range []string{"a", "b"} {
		c, err := coordinator.New(server.Client(t), coordinator.Policy{
			Limit: limit, Window: 10 * time.Minute, Burst: limit, Headroom: 1,
			Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 2}},
		}, coordinator.Options{
			Account: account, Worker: name,
			Events: coordinator.Events{MemoryLost: func(coordinator.MemoryLoss) { forgot <- struct{}{} }},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		workers = append(workers, c)
	}
	for i := range before {
		acquire(t, workers[i%2], "")
	}
	mustDo(t, server.Client(t).Save(ctx).Err())
	for i := range since - 1 {
		acquire(t, workers[i%2], "")
	}
	held := acquire(t, workers[0], chat)
	server.Stop()
	mustDo(t, server.Restart())

	got := 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, c := range workers {
			if _, err := c.TryAcquire(ctx, coordinator.Request{}); err == nil {
				got++
			}
		}
	}
	if all := before + since + got; all > limit {
		t.Errorf("%d requests in a window, limit %d", all, limit)
	}
	if len(forgot) != len(workers) {
		t.Errorf("%d workers found that Redis had forgotten something, want both", len(forgot))
	}
	select {
	case <-held.Lost():
		t.Error("the slot that is held was lost")
	default:
	}
	held.Release()
}
