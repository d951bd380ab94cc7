package redistest

import (
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestClusterFailsOver(t *testing.T) {
	c := StartCluster(t)
	rdb := Open(t, c.URL)
	must(t, rdb.Set(t.Context(), "key", 1, 0).Err())
	master, replica := c.NodeOf(t, "key")
	must(t, master.Client.Wait(t.Context(), 1, 0).Err())
	master.Stop()
	replica.AwaitRole(t, "master")
	Eventually(t, "the replica serves the key", func() error {
		rdb.(*redis.ClusterClient).ReloadState(t.Context())
		return rdb.Get(t.Context(), "key").Err()
	})
}

func TestClusterMigratesASlot(t *testing.T) {
	c := StartCluster(t)
	rdb := Open(t, c.URL)
	must(t, rdb.Set(t.Context(), "{a}1", 1, 0).Err())
	must(t, rdb.Set(t.Context(), "{a}2", 1, 0).Err())
	from, to := c.Migrate(t, "{a}1", func() {
		must(t, rdb.Get(t.Context(), "{a}1").Err())
		must(t, rdb.Get(t.Context(), "{a}2").Err())
	})
	if now, _ := c.NodeOf(t, "{a}2"); now != to || from == to {
		t.Error("the slot has not moved")
	}
}

func TestSentinelsFailOver(t *testing.T) {
	s := StartSentinel(t)
	rdb := Open(t, s.URL)
	must(t, rdb.Set(t.Context(), "key", 1, 0).Err())
	from, to := s.Failover(t)
	if from == to {
		t.Error("the master is the same")
	}
	from.AwaitRole(t, "slave")
	Eventually(t, "the key is there", func() error { return rdb.Get(t.Context(), "key").Err() })
	to.Stop()
	s.AwaitOther(t, to)
}

func TestTLSWithPassword(t *testing.T) {
	s := StartTLS(t)
	must(t, s.Client(t).Ping(t.Context()).Err())
}
