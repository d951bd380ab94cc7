package coordinator

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"
)

// A listener that panics, in a program that recovers, costs no slot: heartbeats would keep
// the one of a permit that nobody has got.
func TestAPanicInAListenerCostsNoSlot(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		granted := func(Grant) { panic("a fault of the listener") }
		c, err := New(r.rdb, Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}, Options{
			Account: "acme", Worker: "a", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Events: Events{Granted: func(g Grant) { granted(g) }},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, ask := range []func(context.Context, Request) (*Permit, error){c.Acquire, c.TryAcquire} {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the listener's panic was swallowed")
					}
				}()
				_, _ = ask(context.Background(), Request{Endpoint: chat})
			}()
			time.Sleep(time.Second)
		}
		granted = func(Grant) {}
		if p, err := c.TryAcquire(context.Background(), Request{Endpoint: chat}); err != nil {
			t.Errorf("the slot is taken still: %v", err)
		} else {
			p.Release()
		}
		closeAll(t, c)
	})
}

// So it is with one that hears of exchanges, where a program can recover: in TryAcquire.
func TestAPanicAboutAnExchangeCostsNoSlot(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, r *rig) {
		fault := true
		c := r.begin(r.rdb, Policy{Limit: 600, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}, Options{
			Worker: "a", Events: Events{Exchanged: func(e Exchange) {
				if fault && e.Wanted > 0 {
					fault = false
					panic("a fault of the listener")
				}
			}},
		})
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the listener's panic was swallowed")
				}
			}()
			_, _ = c.TryAcquire(context.Background(), Request{Endpoint: chat})
		}()
		time.Sleep(time.Second)
		if p, err := c.TryAcquire(context.Background(), Request{Endpoint: chat}); err != nil {
			t.Errorf("the slot is taken still: %v", err)
		} else {
			p.Release()
		}
		closeAll(t, c)
	})
}
