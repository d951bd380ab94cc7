package mockapi

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallsOverTheSlotCapAreRejectedAndCostNothing(t *testing.T) {
	cfg := Config{Latency: map[string]Latency{PostMaveChat: {Mean: 40 * time.Second}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				got := r.do(PostMaveChat, "{}")
				r.expect("status", got.status, 200)
				r.expect("credits", got.body["usage"].(map[string]any)["credits_used"], 10.)
			})
		}
		synctest.Wait()
		r.at(2500 * time.Millisecond)
		got := r.do(PostMaveChat, "{}")
		r.expect("status of the eleventh", got.status, 429)
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 590)
		r.expect("Retry-After: the first call ends", got.int("Retry-After"), 38)
		r.expect("other endpoints", r.do(GetPersonas, "").status, 200)
		r.expect("in flight", r.Stats().InFlight[PostMaveChat], 10)
		calls.Wait()
		r.expect("end of the calls", r.Since(), 40*time.Second)
		s := r.Stats()
		r.expect("in flight", s.InFlight[PostMaveChat], 0)
		r.expect("most in flight", s.MaxInFlight[PostMaveChat], 10)
		r.expect("slot violations", s.SlotViolations, int64(1))
		r.expect("of chat", s.SlotViolationsByEndpoint[PostMaveChat], int64(1))
		r.expect("429s", s.Responses429, int64(1))
		r.expect("limit violations", s.LimitViolations, int64(0))
		r.expect("accepted", s.Accepted, int64(11))
		r.expect("credits", s.CreditsUsed, int64(100))
		r.expect("a slot is free again", r.do(PostMaveChat, "{}").status, 200)
	})
}

func TestJobHoldsItsSlotUntilItEnds(t *testing.T) {
	cfg := Config{NoLatency: true, JobDuration: Range{5 * time.Minute, 5 * time.Minute}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		var id string
		for i := range 3 {
			got := r.do(PostVideoAnalyses, "{}")
			r.expect("state in the answer", got.body["status"], "pending")
			if i == 0 {
				id = got.body["id"].(string)
			}
		}
		r.expect("time that the POSTs took", r.Since(), time.Duration(0))
		got := r.do(PostVideoAnalyses, "{}")
		r.expect("status of the fourth", got.status, 429)
		r.expect("Retry-After, at most a window", got.int("Retry-After"), 60)

		for _, step := range []struct {
			at    time.Duration
			state string
		}{
			{0, "pending"},
			{30*time.Second - 1, "pending"},
			{30 * time.Second, "generating"},
			{5*time.Minute - 1, "generating"},
			{5 * time.Minute, "completed"},
			{time.Hour, "completed"},
		} {
			r.at(step.at)
			got := r.do("GET /video-analyses/"+id, "")
			r.expect("state", got.body["status"], step.state)
			r.expect("has a result", got.body["result"] != nil, step.state == "completed")
			free := step.at >= 5*time.Minute
			r.expect("slots are free", r.Stats().InFlight[PostVideoAnalyses] == 0, free)
			if !free {
				r.expect("status of another", r.do(PostVideoAnalyses, "{}").status, 429)
			}
		}
		r.expect("status of another", r.do(PostVideoAnalyses, "{}").status, 200)
		s := r.Stats()
		r.expect("most in flight", s.MaxInFlight[PostVideoAnalyses], 3)
		r.expect("slot violations", s.SlotViolationsByEndpoint[PostVideoAnalyses], int64(5))
		r.expect("credits, once", s.CreditsUsed, int64(50))
	})
}

func TestJobsFailAtTheConfiguredShare(t *testing.T) {
	cfg := Config{
		NoLatency: true, JobFailures: 0.25, Seed: 7,
		JobDuration: Range{time.Second, time.Second}, Slots: map[string]int{PostVideoAnalyses: 0},
	}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		failed := 0
		for range 200 {
			id := r.do(PostVideoAnalyses, "{}").body["id"].(string)
			time.Sleep(time.Second)
			switch got := r.do("GET /video-analyses/"+id, ""); got.body["status"] {
			case "failed":
				failed++
				r.expect("credits of a failure", got.body["usage"], nil)
			case "completed":
				r.expect("credits", got.body["usage"].(map[string]any)["credits_used"], 50.)
			}
		}
		if failed < 30 || failed > 70 {
			t.Errorf("%d of 200 failed", failed)
		}
	})
}

func TestJobDurationsSpreadOverTheirRangeScaled(t *testing.T) {
	cfg := Config{Seed: 3, TimeScale: 0.1, NoLatency: true, Slots: map[string]int{PostVideoAnalyses: 0}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		shortest, longest := never, instant(0)
		for range 300 {
			r.do(PostVideoAnalyses, "{}")
		}
		for _, j := range r.jobs.byID {
			shortest, longest = min(shortest, j.ends-j.created), max(longest, j.ends-j.created)
		}
		if shortest < 12*time.Second || shortest > 15*time.Second || longest > 60*time.Second || longest < 57*time.Second {
			t.Errorf("jobs last %v to %v, want 12 s to 60 s", shortest, longest)
		}
	})
}

func TestOnlyTheNewestEndedJobsAreRemembered(t *testing.T) {
	cfg := Config{
		NoLatency: true, JobsKept: 5,
		JobDuration: Range{time.Minute, time.Minute}, Slots: map[string]int{PostVideoAnalyses: 0},
	}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		var ids []string
		start := func() { ids = append(ids, r.do(PostVideoAnalyses, "{}").body["id"].(string)) }
		for range 10 {
			start()
		}
		r.expect("running jobs remembered", len(r.jobs.byID), 10)
		time.Sleep(time.Minute)
		start()
		r.expect("jobs remembered", len(r.jobs.byID), 5)
		r.expect("the oldest", r.do("GET /video-analyses/"+ids[0], "").status, 404)
		r.expect("the newest", r.do("GET /video-analyses/"+ids[10], "").status, 200)
	})
}

func TestStreamedChatComesInPiecesOverItsLatency(t *testing.T) {
	cfg := Config{
		StreamChunks: 4, Slots: map[string]int{PostMaveChat: 1},
		Latency: map[string]Latency{PostMaveChat: {Mean: 40 * time.Second}},
	}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		req, _ := http.NewRequest("POST", r.url+"/mave/chat", strings.NewReader(`{"stream":true}`))
		req.Header.Set("Authorization", "Bearer "+testKey)
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r.expect("time of the headers", r.Since(), time.Duration(0))
		r.expect("content type", resp.Header.Get("Content-Type"), "text/event-stream; charset=utf-8")
		r.expect("remaining", resp.Header.Get("X-RateLimit-Remaining"), "599")
		var events []string
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			event, ok := strings.CutPrefix(lines.Text(), "event: ")
			if !ok {
				continue
			}
			events = append(events, event)
			if event == "chunk" {
				r.expect("time of a chunk", r.Since(), time.Duration(len(events)-1)*10*time.Second)
			}
			if event == "done" { // whoever has seen it may use the slot
				r.expect("in flight", r.Stats().InFlight[PostMaveChat], 0)
			} else if len(events) < 1+cfg.StreamChunks { // the last chunk and the end come at one instant
				r.expect("in flight", r.Stats().InFlight[PostMaveChat], 1)
			}
		}
		r.expect("events", strings.Join(events, " "), "start chunk chunk chunk chunk done")
		r.expect("credits", r.Stats().CreditsUsed, int64(10))
	})
}

func TestClientThatGoesAwayFreesItsSlotAtOnceOrLater(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for _, body := range []string{`{}`, `{"stream":true}`} {
			cfg := Config{KeepBroken: keep, Latency: map[string]Latency{PostMaveChat: {Mean: 40 * time.Second}}}
			inBubble(t, cfg, func(t *testing.T, r *rig) {
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				if got := r.doCtx(ctx, testKey, PostMaveChat, body); got.err == nil {
					t.Error("the call did not end with its context")
				}
				synctest.Wait()
				held := 0
				if keep {
					held = 1
				}
				r.expect("in flight", r.Stats().InFlight[PostMaveChat], held)
				r.expect("canceled", r.Stats().Canceled, int64(1))
				r.at(40 * time.Second)
				r.expect("in flight at the planned end", r.Stats().InFlight[PostMaveChat], 0)
			})
		}
	}
}

func TestStrangerInASlotIsNotTheFleetsFault(t *testing.T) {
	cfg := Config{NoLatency: true, Slots: map[string]int{PostFocusGroups: 1}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		release, ok := r.OccupySlot("", PostFocusGroups)
		r.expect("occupied", ok, true)
		if _, ok := r.OccupySlot("", PostFocusGroups); ok {
			t.Error("one slot was taken twice")
		}
		if _, ok := r.OccupySlot("", PostResponses); ok {
			t.Error("an endpoint without slots gave one")
		}
		if _, ok := r.OccupySlot("", "POST /nothing"); ok {
			t.Error("an unknown endpoint gave a slot")
		}
		r.expect("status", r.do(PostFocusGroups, "{}").status, 429)
		release()
		release()
		r.expect("status", r.do(PostFocusGroups, "{}").status, 200)
		s := r.Stats()
		r.expect("slot violations", s.SlotViolations, int64(0))
		r.expect("unavoidable", s.Unavoidable429, int64(1))
		r.expect("most of the fleet in flight", s.MaxInFlight[PostFocusGroups], 1)
	})
}

func TestLatencyIsSpreadEvenlyAndScaled(t *testing.T) {
	inBubble(t, Config{Limit: 10_000, TimeScale: 0.01, Seed: 1}, func(t *testing.T, r *rig) {
		shortest, longest := time.Hour, time.Duration(0)
		for range 200 {
			before := r.Since()
			r.do(PostMaveChat, "{}")
			took := r.Since() - before
			shortest, longest = min(shortest, took), max(longest, took)
		}
		if shortest < 300*time.Millisecond || shortest > 330*time.Millisecond ||
			longest > 900*time.Millisecond || longest < 870*time.Millisecond {
			t.Errorf("chats last %v to %v, want 300 ms to 900 ms", shortest, longest)
		}
	})
}

func TestAbandonedStreamEndsTheCall(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		req, _ := http.NewRequest("POST", r.url+"/mave/chat", strings.NewReader(`{"stream":true}`))
		req.Header.Set("Authorization", "Bearer "+testKey)
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 10))
		resp.Body.Close()
		synctest.Wait()
		r.expect("in flight", r.Stats().InFlight[PostMaveChat], 0)
	})
}
