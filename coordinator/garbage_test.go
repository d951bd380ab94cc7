package coordinator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// What answers is no Redis, or something in between spoils what it says: callers are told
// at once what came, in a few words, and nothing is taken for an outage.
func TestAReplyThatMakesNoSenseIsRefused(t *testing.T) {
	long := strings.Repeat("9", 1<<16)
	for name, reply := range map[string]func(c *server.Peer){
		"a number":          func(c *server.Peer) { c.WriteInt(7) },
		"a text":            func(c *server.Peer) { c.WriteBulk("OK") },
		"a status":          func(c *server.Peer) { c.WriteInline("hello") },
		"nothing":           func(c *server.Peer) { c.WriteStrings(nil) },
		"too little":        func(c *server.Peer) { c.WriteStrings([]string{"1", "2"}) },
		"no numbers":        func(c *server.Peer) { c.WriteStrings(slices.Repeat([]string{"x"}, 17)) },
		"huge numbers":      func(c *server.Peer) { c.WriteStrings(slices.Repeat([]string{long}, 17)) },
		"negative":          func(c *server.Peer) { c.WriteStrings(slices.Repeat([]string{"-1"}, 17)) },
		"too many permits":  func(c *server.Peer) { c.WriteStrings(slices.Repeat([]string{"5"}, 17)) },
		"more than one ask": func(c *server.Peer) { c.WriteStrings(slices.Repeat([]string{"0"}, 29)) },
		"no protocol":       func(c *server.Peer) { c.WriteRaw("HTTP/1.1 400 Bad Request\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, r *rig) {
				c := r.workerWith("a", Policy{Limit: 60, Endpoints: []Endpoint{{Pattern: "POST /chat", Slots: 1}}}, noOutage(t))
				mustAcquire(t, c, "").Release() // there is a server from the first connection on
				spoil := func(on bool) {
					r.mini.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
						if on && strings.HasPrefix(strings.ToUpper(cmd), "EVAL") {
							reply(p)
							return true
						}
						return false
					})
				}
				spoil(true)
				check := func(err error) {
					t.Helper()
					var bad *ReplyError
					if !errors.As(err, &bad) || len(err.Error()) > 400 {
						t.Errorf("error %.500v, want a short ReplyError", err)
					}
				}
				_, err := c.Acquire(context.Background(), Request{})
				check(err)
				_, err = c.TryAcquire(context.Background(), Request{Endpoint: "POST /chat"})
				check(err)
				time.Sleep(time.Minute) // heartbeats are refused as well
				spoil(false)
				mustAcquire(t, c, "POST /chat").Release()
				closeAll(t, c)
			})
		})
	}
}

// There is more to tell than can be remembered: what the API said is dropped before what
// gives slots back, and budget.
func TestAFullOutboxDropsReportsBeforeReleases(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		c := r.worker("a", Policy{Limit: 60, Endpoints: []Endpoint{{Pattern: "POST /video", Slots: 1, JobTTL: time.Hour}}})
		l := c.lanes["POST /video"]
		p := &Permit{c: c, lane: l, lease: "a:1:1"}
		c.mu.Lock()
		var ops []op
		for i := range 3 * maxOutbox {
			kind := []opKind{opSaid, opSaid, opSeen, opRelease, opDone, opBind}[i%6]
			ops = append(ops, op{kind: kind, lane: l, permit: p, job: "job", said: Feedback{Status: 200}})
		}
		counts := make(map[opKind]int)
		for _, o := range ops {
			c.append(o) // one by one, as they come
		}
		for _, o := range c.outbox {
			counts[o.kind]++
		}
		n := len(c.outbox)
		c.outbox = nil
		c.mu.Unlock()
		if n > maxOutbox || n < maxOutbox*8/10 {
			t.Errorf("%d operations are kept, want at most %d, and most of those", n, maxOutbox)
		}
		if counts[opRelease] < 2500 || counts[opDone] < 2500 || counts[opBind] < 2500 {
			t.Errorf("kept: %v, want reports dropped first", counts)
		}

		// A report more does not cost a release.
		c.mu.Lock()
		for range maxOutbox {
			c.append(op{kind: opRelease, lane: l, permit: p})
		}
		c.append(op{kind: opSaid, lane: l, permit: p, said: Feedback{Status: 200}})
		kept := len(c.outbox)
		reports := slices.ContainsFunc(c.outbox, func(o op) bool { return o.kind == opSaid })
		c.outbox = nil
		c.mu.Unlock()
		if reports || kept < maxOutbox*9/10 {
			t.Errorf("%d operations are kept, a report among them: %v; want releases alone", kept, reports)
		}
		closeAll(t, c)
	})
}
