package redistest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Sentinel is a master with two replicas, watched by three Sentinels, all of the
// test's own.
type Sentinel struct {
	URL   string
	Nodes []*Node

	watchers []*redis.SentinelClient
}

const masterName = "mymaster"

// StartSentinel starts them. Extra arguments go to the data servers.
func StartSentinel(t testing.TB, args ...string) *Sentinel {
	t.Helper()
	s := &Sentinel{}
	args = append([]string{"--repl-diskless-sync-delay", "0"}, args...)
	for i := range 3 {
		more := args
		if i > 0 {
			more = append(append([]string(nil), args...), "--replicaof", "127.0.0.1 "+strconv.Itoa(s.Nodes[0].Port))
		}
		s.Nodes = append(s.Nodes, newNode(t, own(t, more...)))
	}
	for _, n := range s.Nodes[1:] {
		n.awaitReplication(t)
	}
	query := url.Values{"master_name": {masterName}}
	for range 3 {
		w := startWatcher(t, s.Nodes[0].Port)
		query.Add("addr", "127.0.0.1:"+strconv.Itoa(w.Port))
		client := redis.NewSentinelClient(&redis.Options{Addr: "127.0.0.1:" + strconv.Itoa(w.Port)})
		t.Cleanup(func() { client.Close() })
		s.watchers = append(s.watchers, client)
	}
	host := query["addr"][0]
	query["addr"] = query["addr"][1:]
	s.URL = (&url.URL{Scheme: "redis+sentinel", Host: host, RawQuery: query.Encode()}).String()
	Eventually(t, "Sentinels know the replicas and each other", func() error {
		for _, w := range s.watchers {
			m, err := w.Master(context.Background(), masterName).Result()
			if err != nil {
				return err
			}
			if m["num-slaves"] != "2" || m["num-other-sentinels"] != "2" || m["flags"] != "master" {
				return fmt.Errorf("%v", m)
			}
		}
		return nil
	})
	return s
}

func startWatcher(t testing.TB, master int) *Server {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, `
sentinel monitor %[1]s 127.0.0.1 %[2]d 2
sentinel down-after-milliseconds %[1]s %[3]d
sentinel failover-timeout %[1]s 10000
sentinel parallel-syncs %[1]s 2
`, masterName, master, nodeTimeout.Milliseconds()), 0o600))
	return own(t, conf, "--sentinel")
}

// Master is the node that the first Sentinel takes for the master.
func (s *Sentinel) Master(t testing.TB) *Node {
	t.Helper()
	addr, err := s.watchers[0].GetMasterAddrByName(context.Background(), masterName).Result()
	must(t, err)
	for _, n := range s.Nodes {
		if strconv.Itoa(n.Port) == addr[1] {
			return n
		}
	}
	t.Fatalf("the Sentinel names %v, which is none of the nodes", addr)
	return nil
}

// Failover makes the Sentinels put a replica in the master's place, and waits until
// all of them agree. The old master goes on as a replica.
func (s *Sentinel) Failover(t testing.TB) (from, to *Node) {
	t.Helper()
	from = s.Master(t)
	// Sentinels refuse while they are not sure of the replicas.
	Eventually(t, "failover begins", func() error {
		return s.watchers[0].Failover(context.Background(), masterName).Err()
	})
	return from, s.AwaitOther(t, from)
}

// AwaitOther waits until the Sentinels agree on a master other than this one, and it
// is one.
func (s *Sentinel) AwaitOther(t testing.TB, than *Node) (to *Node) {
	t.Helper()
	Eventually(t, "all Sentinels name another master", func() error {
		for _, w := range s.watchers {
			addr, err := w.GetMasterAddrByName(context.Background(), masterName).Result()
			if err != nil {
				return err
			}
			if addr[1] == strconv.Itoa(than.Port) {
				return fmt.Errorf("it is still %v", addr)
			}
		}
		return nil
	})
	to = s.Master(t)
	to.AwaitRole(t, "master")
	return to
}
