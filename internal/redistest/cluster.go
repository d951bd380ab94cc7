package redistest

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Cluster is a Redis Cluster of the test's own: three masters, each with a replica.
type Cluster struct {
	URL   string
	Nodes []*Node // masters first, then their replicas in the same order
}

// Node is a server of a cluster, or behind Sentinels.
type Node struct {
	*Server
	ID     string // in the cluster
	Client *redis.Client
}

// slots of a Redis Cluster.
const slots = 16384

// nodeTimeout is how long a master must be silent to be taken for dead. Longer than
// a busy machine may keep a healthy one waiting.
const nodeTimeout = 2 * time.Second

// StartCluster starts three masters and three replicas, which take a dead master's
// place by themselves.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	const masters = 3
	c := &Cluster{}
	query := url.Values{}
	for range 2 * masters {
		n := startNode(t)
		c.Nodes = append(c.Nodes, n)
		query.Add("addr", n.Addr())
	}
	u := url.URL{Scheme: "redis+cluster", Host: c.Nodes[0].Addr(), RawQuery: query.Encode()}
	c.URL = u.String()

	ctx := context.Background()
	for i, n := range c.Nodes {
		must(t, n.Client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		if i < masters {
			must(t, n.Client.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err())
		}
	}
	for _, n := range c.Nodes[1:] {
		meet(t, n, c.Nodes[0])
	}
	Eventually(t, "all nodes know each other", func() error {
		for _, n := range c.Nodes {
			if err := n.says(ctx, "cluster_state:ok", "cluster_known_nodes:6"); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range masters {
		must(t, c.Nodes[masters+i].Client.ClusterReplicate(ctx, c.Nodes[i].ID).Err())
	}
	for _, n := range c.Nodes[masters:] {
		n.awaitReplication(t)
	}
	Eventually(t, "all nodes know the replicas", func() error {
		for _, n := range c.Nodes {
			shards, err := n.Client.ClusterShards(ctx).Result()
			if err != nil {
				return err
			}
			for _, s := range shards {
				if len(s.Nodes) != 2 || s.Nodes[0].Health != "online" || s.Nodes[1].Health != "online" {
					return fmt.Errorf("%v", shards)
				}
			}
		}
		return nil
	})
	return c
}

// startNode starts a server that is a cluster of its own.
func startNode(t testing.TB) *Node {
	t.Helper()
	bus, err := FreePort()
	must(t, err)
	n := newNode(t, own(t, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus),
		"--cluster-node-timeout", strconv.FormatInt(nodeTimeout.Milliseconds(), 10),
		"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"))
	n.ID, err = n.Client.ClusterMyID(context.Background()).Result()
	must(t, err)
	return n
}

func newNode(t testing.TB, s *Server) *Node {
	t.Helper()
	return &Node{Server: s, Client: s.Client(t)}
}

func meet(t testing.TB, n, other *Node) {
	t.Helper()
	ctx := context.Background()
	conf, err := other.Client.ConfigGet(ctx, "cluster-port").Result()
	must(t, err)
	must(t, n.Client.Do(ctx, "CLUSTER", "MEET", "127.0.0.1", other.Port, conf["cluster-port"]).Err())
}

// Addr is the node's address.
func (n *Node) Addr() string { return "127.0.0.1:" + strconv.Itoa(n.Port) }

func (n *Node) says(ctx context.Context, all ...string) error {
	text, err := n.Client.ClusterInfo(ctx).Result()
	if err != nil {
		return err
	}
	for _, what := range all {
		if !strings.Contains(text, what) {
			return fmt.Errorf("no %s in %q", what, text)
		}
	}
	return nil
}

// Role is "master" or "slave".
func (n *Node) Role() (string, error) {
	reply, err := n.Client.Do(context.Background(), "ROLE").Slice()
	if err != nil {
		return "", err
	}
	return fmt.Sprint(reply[0]), nil
}

// AwaitRole waits until the node is "master" or "slave".
func (n *Node) AwaitRole(t testing.TB, role string) {
	t.Helper()
	Eventually(t, "node is "+role, func() error {
		got, err := n.Role()
		if err == nil && got != role {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// TakeOver has a replica take its master's place, which lives on.
func (n *Node) TakeOver(t testing.TB) {
	t.Helper()
	var ordered time.Time
	Eventually(t, "the replica takes its master's place", func() error {
		role, err := n.Role()
		if err != nil || role == "master" {
			return err
		}
		if time.Since(ordered) > 10*time.Second { // Redis gives up after five
			ordered = time.Now()
			err = n.Client.ClusterFailover(context.Background()).Err()
		}
		return fmt.Errorf("it is %s: %v", role, err)
	})
}

func (n *Node) awaitReplication(t testing.TB) {
	t.Helper()
	Eventually(t, "replica follows its master", func() error {
		text, err := n.Client.Info(context.Background(), "replication").Result()
		if err == nil && !strings.Contains(text, "master_link_status:up") {
			err = fmt.Errorf("%q", text)
		}
		return err
	})
}

// NodeOf returns the master that serves a key, and its replica (nil: none is alive).
func (c *Cluster) NodeOf(t testing.TB, key string) (master, replica *Node) {
	t.Helper()
	ctx := context.Background()
	Eventually(t, "a master serves "+key, func() error {
		for _, asked := range c.Nodes {
			slot, err := asked.Client.ClusterKeySlot(ctx, key).Result()
			if err != nil {
				continue // this one is dead
			}
			shards, err := asked.Client.ClusterShards(ctx).Result()
			if err != nil {
				continue
			}
			for _, s := range shards {
				if !slices.ContainsFunc(s.Slots, func(r redis.SlotRange) bool { return r.Start <= slot && slot <= r.End }) {
					continue
				}
				master, replica = nil, nil
				for _, n := range s.Nodes {
					switch {
					case n.Health != "online":
					case n.Role == "master":
						master = c.byID(n.ID)
					default:
						replica = c.byID(n.ID)
					}
				}
				if master != nil {
					return nil
				}
			}
		}
		return fmt.Errorf("no node knows")
	})
	return master, replica
}

func (c *Cluster) byID(id string) *Node {
	for _, n := range c.Nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

// Migrate moves the slot of a key from its master to another, key by key, as a
// resharding does. During is called when the first half of the keys has moved.
func (c *Cluster) Migrate(t testing.TB, key string, during func()) (from, to *Node) {
	t.Helper()
	ctx := context.Background()
	from, _ = c.NodeOf(t, key)
	for _, n := range c.Nodes {
		if role, err := n.Role(); err == nil && role == "master" && n != from {
			to = n
			break
		}
	}
	slot, err := from.Client.ClusterKeySlot(ctx, key).Result()
	must(t, err)
	must(t, to.Client.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", from.ID).Err())
	must(t, from.Client.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", to.ID).Err())
	keys, err := from.Client.ClusterGetKeysInSlot(ctx, int(slot), 1000).Result()
	must(t, err)
	for i, k := range keys {
		if i == len(keys)/2 {
			during()
		}
		must(t, from.Client.Migrate(ctx, "127.0.0.1", strconv.Itoa(to.Port), k, 0, 10*time.Second).Err())
	}
	for { // those that have come up meanwhile
		keys, err := from.Client.ClusterGetKeysInSlot(ctx, int(slot), 1000).Result()
		must(t, err)
		if len(keys) == 0 {
			break
		}
		for _, k := range keys {
			must(t, from.Client.Migrate(ctx, "127.0.0.1", strconv.Itoa(to.Port), k, 0, 10*time.Second).Err())
		}
	}
	must(t, to.Client.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", to.ID).Err())
	must(t, from.Client.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", to.ID).Err())
	return from, to
}

// Eventually waits for a condition, a minute at most.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute still not: %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
