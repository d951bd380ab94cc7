package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Failures that others shipped. Each trial is played twice, in virtual time: the naive
// version must fail it, or it would show nothing; ours must pass.

// A member is a process of the fleet under trial, with a way to Redis of its own.
type member struct {
	limiter
	*link
}

// A trial says what went wrong in a fleet whose members join under the names that it
// gives them.
type trial func(r *rig, join func(name string) member) error

func sideBySide(t *testing.T, p Policy, endpoint string, naive func(*redis.Client) limiter, play trial) {
	t.Helper()
	t.Run("naive", func(t *testing.T) { mustFail(t, naive, play) })
	t.Run("fleetlimit", func(t *testing.T) { mustPass(t, p, endpoint, play) })
}

func mustFail(t *testing.T, naive func(*redis.Client) limiter, play trial) {
	t.Helper()
	wrong := play.run(t, func(r *rig, _ string) member {
		l := &link{r: r}
		return member{naive(l.client()), l}
	})
	if wrong == nil {
		t.Error("the naive version passes: the trial shows nothing")
	}
	t.Log("as it should be:", wrong)
}

func mustPass(t *testing.T, p Policy, endpoint string, play trial) {
	t.Helper()
	wrong := play.run(t, func(r *rig, name string) member {
		c, l := r.linked(name, p, OwnShare)
		return member{ours{c, endpoint}, l}
	})
	if wrong != nil {
		t.Error(wrong)
	}
}

func (play trial) run(t *testing.T, engage func(r *rig, name string) member) (wrong error) {
	t.Helper()
	inVirtualTime(t, func(t *testing.T, r *rig) {
		var fleet []member
		wrong = play(r, func(name string) member {
			m := engage(r, name)
			fleet = append(fleet, m)
			return m
		})
		for _, m := range fleet {
			m.close()
		}
	})
	return wrong
}

// oneSlot is the policy of trials that are about slots alone.
var oneSlot = Policy{Limit: 6000, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 1}}}

// served says how long it takes until a member gets what it asks for, and gives it back
// if the trial needs no more of it.
func served(m member, patience time.Duration) (took time.Duration, g grant, err error) {
	ctx, cancel := within(patience)
	defer cancel()
	start := time.Now()
	g, err = m.take(ctx)
	return time.Since(start), g, err
}

// saturate lets callers of each member take without end for a while, and returns when
// each was let in.
func saturate(fleet []member, callers int, length, call time.Duration) []time.Duration {
	var takers []taker
	for _, m := range fleet {
		takers = append(takers, func(ctx context.Context) (func(), error) {
			g, err := m.take(ctx)
			return func() { time.Sleep(call); g.done() }, err
		})
	}
	return takeTimes(takers, callers, length)
}

// Burst and rate together let nearly twice the limit through.
func TestNoWindowIsExceededAndNoneIsWasted_RedisRate24(t *testing.T) {
	of := func(limit int) trial {
		return func(r *rig, join func(string) member) error {
			times := saturate([]member{join("a"), join("b"), join("c")}, 4, 5*time.Minute, 100*time.Millisecond)
			if most := mostWithin(times, time.Minute); most > limit {
				return fmt.Errorf("%d permits in one window of %d", most, limit)
			}
			if want := limit * 5 * 985 / 1000; len(times) < want {
				return fmt.Errorf("%d permits in five windows of %d, want at least %d", len(times), limit, want)
			}
			return nil
		}
	}
	t.Run("naive", func(t *testing.T) { mustFail(t, newRedisRate(60), of(60)) })
	for _, limit := range []int{7, 60, 600} {
		for _, burst := range []int{1, limit / 2, limit} {
			t.Run(fmt.Sprintf("fleetlimit/limit %d burst %d", limit, burst), func(t *testing.T) {
				mustPass(t, Policy{Limit: limit, Burst: burst, Headroom: 1}, "", of(limit))
			})
		}
	}
}

// Every pod that falls back to the full limit makes R into N × R.
func TestWorkersAloneTogetherKeepTheLimit_Litellm35533(t *testing.T) {
	const limit = 120
	sideBySide(t, Policy{Limit: limit, Headroom: 1}, "", newOpenFallback(limit), func(r *rig, join func(string) member) error {
		var fleet []member
		for i := range 4 {
			fleet = append(fleet, join(fmt.Sprint("w", i)))
		}
		cut := func(is bool) {
			for _, m := range fleet {
				m.setCut(is)
			}
		}
		time.AfterFunc(2*time.Minute, func() { cut(true) })
		time.AfterFunc(5*time.Minute, func() { cut(false) })
		times := saturate(fleet, 3, 7*time.Minute, 100*time.Millisecond)
		if most := mostWithin(times, time.Minute); most > limit {
			return fmt.Errorf("%d requests in a minute, limit %d", most, limit)
		}
		if n := between(times, 2*time.Minute, 5*time.Minute); n < limit*3/2 {
			return fmt.Errorf("%d requests in three minutes without Redis, limit %d", n, limit)
		}
		return nil
	})
}

// Without a wake-up on release, throughput is slots ÷ interval of polling.
func TestSlotsAreNeverExceededAndNeverIdle_Openlinker2019(t *testing.T) {
	const slots, call, length = 2, 500 * time.Millisecond, 5 * time.Minute
	p := Policy{Limit: 6000, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: slots}}}
	sideBySide(t, p, chat, newCounter(slots, time.Second, false), func(r *rig, join func(string) member) error {
		var fleet []member
		for i := range 4 {
			fleet = append(fleet, join(fmt.Sprint("w", i)))
		}
		times := saturate(fleet, 3, length, call)
		if most := mostWithin(times, call); most > slots {
			return fmt.Errorf("%d calls at once, want %d", most, slots)
		}
		if want := slots * int(length/call) * 98 / 100; len(times) < want {
			return fmt.Errorf("%d calls of %v in %v on %d slots, want at least %d", len(times), call, length, slots, want)
		}
		return nil
	})
}

// A lost message that a slot is free leaves those who wait for it hanging.
func TestLostWakeupDoesNotHang_Redisson5762(t *testing.T) {
	sideBySide(t, oneSlot, chat, newCounter(1, 0, true), func(r *rig, join func(string) member) error {
		a, b := join("a"), join("b")
		_, held, err := served(a, time.Second)
		if err != nil {
			return err
		}
		b.deaf.Store(true)
		time.AfterFunc(3500*time.Millisecond, held.done)
		took, g, err := served(b, time.Minute)
		if err != nil || took < 3500*time.Millisecond || took > 5*time.Second {
			return fmt.Errorf("served after %v (%v), want within the fallback of about a second after 3.5 s", took, err)
		}
		g.done()
		return nil
	})
}

// A process that dies with its permits takes them with it for good.
func TestCrashGivesSlotsBackAfterTheTTLAndNotBefore_Redisson4462(t *testing.T) {
	p := Policy{Limit: 6000, Headroom: 1, Endpoints: []Endpoint{{Pattern: chat, Slots: 2}}}
	sideBySide(t, p, chat, newCounter(2, time.Second, true), func(r *rig, join func(string) member) error {
		dead, alive := join("dead"), join("alive")
		for range 2 {
			if _, _, err := served(dead, time.Second); err != nil {
				return err
			}
		}
		time.Sleep(45 * time.Second) // kept by the heartbeat
		if _, _, err := served(alive, time.Second); err == nil {
			return errors.New("a third call was admitted on two slots")
		}
		dead.crash()
		took, g, err := served(alive, time.Hour)
		if err != nil || took < 20*time.Second || took > 32*time.Second {
			return fmt.Errorf("the slot came back %v after the crash (%v), want between two thirds of the TTL and the TTL", took, err)
		}
		g.done()
		return nil
	})
}

// A process that loses its session keeps its permits from others.
func TestLostSessionGivesItsSlotToOthers_Curator595(t *testing.T) {
	sideBySide(t, oneSlot, chat, newSession(1), func(r *rig, join func(string) member) error {
		a, b := join("a"), join("b")
		for _, m := range []member{a, b} { // each is known to the other
			_, g, err := served(m, time.Minute)
			if err != nil {
				return err
			}
			g.done()
		}
		time.Sleep(15 * time.Second)
		_, held, err := served(a, time.Second)
		if err != nil {
			return err
		}
		a.setCut(true)
		took, g, err := served(b, time.Hour)
		if err != nil || took < 20*time.Second || took > 32*time.Second {
			return fmt.Errorf("the slot came free %v after its holder was cut off (%v), want the TTL", took, err)
		}
		if held.lost == nil || !isClosed(held.lost) {
			return errors.New("its holder has not been told that others use the slot")
		}
		a.setCut(false)
		time.Sleep(20 * time.Second) // the holder is back, and must not take it again
		held.done()
		if _, _, err := served(a, 2*time.Second); err == nil {
			return errors.New("two calls on one slot once the holder was back")
		}
		g.done()
		if took, g, err = served(a, time.Minute); err != nil || took > 2*time.Second {
			return fmt.Errorf("a slot that is free was given after %v (%v)", took, err)
		}
		g.done()
		return nil
	})
}

// After a crash of Redis those who waited were never served until it was flushed.
func TestWhoWaitsIsServedWhenRedisIsBack_Bottleneck194(t *testing.T) {
	sideBySide(t, oneSlot, chat, newCounter(1, 0, true), func(r *rig, join func(string) member) error {
		a, b := join("a"), join("b")
		_, held, err := served(a, time.Second)
		if err != nil {
			return err
		}
		cut := func(is bool) { a.setCut(is); b.setCut(is) }
		time.AfterFunc(10*time.Second, func() { cut(true) })
		time.AfterFunc(12*time.Second, held.done)
		time.AfterFunc(20*time.Second, func() { cut(false) })
		// b is in the queue long before the outage, and has no deadline.
		took, g, err := served(b, time.Hour)
		if err != nil || took > 30*time.Second {
			return fmt.Errorf("served after %v (%v), want at most ten seconds after the outage of 10 s that began after 10 s", took, err)
		}
		g.done()
		return nil
	})
}

// A process that dies while it stands first in the queue leaves everybody behind it
// waiting, until Redis was flushed.
func TestDeadHeadOfTheQueueHoldsUpNobody_Bottleneck77(t *testing.T) {
	sideBySide(t, oneSlot, chat, newTurns, func(r *rig, join func(string) member) error {
		holder, dead, alive := join("holder"), join("dead"), join("alive")
		_, held, err := served(holder, time.Second)
		if err != nil {
			return err
		}
		ctx, cancel := within(5 * time.Second)
		defer cancel()
		var waits atomic.Bool
		go func() {
			waits.Store(true)
			_, _ = dead.take(ctx)
		}()
		time.Sleep(time.Second)
		if !waits.Load() {
			return errors.New("nobody stands first")
		}
		dead.crash()
		time.AfterFunc(9*time.Second, held.done)
		took, g, err := served(alive, time.Hour)
		if err != nil || took > 13*time.Second {
			return fmt.Errorf("served after %v (%v), want a few seconds after the slot was free after 9 s", took, err)
		}
		g.done()
		<-ctx.Done()
		return nil
	})
}
