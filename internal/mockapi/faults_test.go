package mockapi

import (
	"context"
	"strings"
	"testing"
	"time"
)

func (r *rig) inject(f Fault) {
	r.t.Helper()
	if err := r.Inject(f); err != nil {
		r.t.Fatal(err)
	}
}

func TestInjectedErrorsStrikeTheNextRequestsAndTakeBudget(t *testing.T) {
	inBubble(t, Config{Limit: 10, NoLatency: true}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultError, Count: 2})
		r.inject(Fault{Kind: FaultError, Status: 503, RetryAfter: 1500 * time.Millisecond, Endpoint: PostMaveChat})
		r.inject(Fault{Kind: FaultError, Status: 402, Endpoint: PostMaveChat})
		for range 2 {
			got := r.mustGet(500)
			r.expect("code", got.body["error"].(map[string]any)["code"], "internal_error")
			r.expect("Retry-After", got.header.Get("Retry-After"), "")
		}
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 7)
		got := r.do(PostMaveChat, "{}")
		r.expect("status", got.status, 503)
		r.expect("code", got.body["error"].(map[string]any)["code"], "service_unavailable")
		r.expect("Retry-After", got.int("Retry-After"), 2)
		got = r.do(PostMaveChat, "{}")
		r.expect("status", got.status, 402)
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 5)
		r.expect("status", r.do(PostMaveChat, "{}").status, 200)
		s := r.Stats()
		r.expect("errors injected", s.ErrorsInjected, int64(4))
		r.expect("accepted", s.Accepted, int64(6))
		r.expect("in flight", s.InFlight[PostMaveChat], 0)
	})
}

func TestProbableFaultsStrikeTheirShare(t *testing.T) {
	inBubble(t, Config{Limit: 2000, NoLatency: true, Seed: 5,
		Faults: []Fault{{Kind: FaultError, Probability: 0.2}, {Kind: FaultError, Status: 503, Probability: 0.5, Count: 10}},
	}, func(t *testing.T, r *rig) {
		got := map[int]int{}
		for range 1000 {
			got[r.get().status]++
		}
		r.expect("503s, as many as counted", got[503], 10)
		if got[500] < 150 || got[500] > 250 {
			t.Errorf("%d of 1000 are 500", got[500])
		}
		r.ClearFaults()
		for range 20 {
			r.mustGet(200)
		}
	})
}

func TestHangHoldsSlotUntilTheClientGoesOrItsDurationEnds(t *testing.T) {
	inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultHang})
		r.inject(Fault{Kind: FaultHang, Duration: 7 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
		defer cancel()
		time.AfterFunc(99*time.Hour, func() {
			r.expect("in flight", r.Stats().InFlight[PostMaveChat], 1)
		})
		if got := r.doCtx(ctx, testKey, PostMaveChat, `{}`); got.err == nil {
			t.Error("a hung call was answered")
		}
		r.expect("end", r.Since(), 100*time.Hour)
		time.Sleep(time.Second)
		r.expect("in flight", r.Stats().InFlight[PostMaveChat], 0)
		before := r.Since()
		r.expect("status", r.do(PostMaveChat, "{}").status, 200)
		r.expect("duration", r.Since()-before, 7*time.Second)
	})
}

func TestHangEndsWithTheAPI(t *testing.T) {
	inBubble(t, Config{Faults: []Fault{{Kind: FaultHang}}}, func(t *testing.T, r *rig) {
		time.AfterFunc(time.Minute, func() { r.Close() })
		if got := r.get(); got.err == nil {
			t.Error("a hung call was answered")
		}
		r.expect("end", r.Since(), time.Minute)
		if got := r.get(); got.err == nil {
			t.Error("a closed API was reached")
		}
	})
}

func TestCutConnections(t *testing.T) {
	for _, tc := range []struct {
		kind     FaultKind
		accepted int64
		jobs     int
		took     time.Duration
	}{
		{FaultCut, 0, 0, 0},
		{FaultCutAfter, 1, 1, 2 * time.Second},
	} {
		cfg := Config{Latency: map[string]Latency{PostVideoAnalyses: {Mean: 2 * time.Second}}}
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			r.inject(Fault{Kind: tc.kind})
			if got := r.do(PostVideoAnalyses, "{}"); got.err == nil {
				t.Errorf("%s: the request was answered %d", tc.kind, got.status)
			}
			r.expect("time", r.Since(), tc.took)
			s := r.Stats()
			r.expect("requests", s.Requests, int64(1))
			r.expect("accepted", s.Accepted, tc.accepted)
			r.expect("jobs that run", s.InFlight[PostVideoAnalyses], tc.jobs)
			r.expect("errors injected", s.ErrorsInjected, int64(1))
		})
	}
}

func TestCutAfterBreaksAStreamHalfWay(t *testing.T) {
	inBubble(t, Config{StreamChunks: 4}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultCutAfter})
		got := r.do(PostMaveChat, `{"stream":true}`)
		r.expect("chunks", strings.Count(got.raw, "event: chunk"), 2)
		if got.err == nil {
			t.Error("the stream ended well")
		}
		r.expect("in flight", r.Stats().InFlight[PostMaveChat], 0)
	})
}

func TestFaultFuncChoosesPerRequest(t *testing.T) {
	cfg := Config{NoLatency: true, FaultFunc: func(endpoint string, n int64) (Fault, bool) {
		return Fault{Kind: FaultError, Status: 503}, endpoint == GetPersonas && n%2 == 0
	}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for range 3 {
			r.mustGet(200)
			r.mustGet(503)
		}
		r.expect("status", r.do(PostGenerations, "").status, 200)
		r.expect("status", r.do(PostGenerations, "").status, 200)
	})
}

func TestSurprise429OrdersAPauseThatTheJudgeWatches(t *testing.T) {
	inBubble(t, Config{NoLatency: true, Grace: 100 * time.Millisecond}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultSurprise429, RetryAfter: 5 * time.Second})
		got := r.mustGet(429)
		r.expect("Retry-After", got.int("Retry-After"), 5)
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 0)
		r.expect("reset", got.untilReset(), 5)
		for _, step := range []struct {
			at         time.Duration
			violations int64
		}{
			{100 * time.Millisecond, 0}, // still in grace
			{101 * time.Millisecond, 1},
			{5*time.Second - 1, 2},
			{5 * time.Second, 2},
		} {
			r.at(step.at)
			r.mustGet(200)
			r.expect("pause violations", r.Stats().PauseViolations, step.violations)
		}
		s := r.Stats()
		r.expect("429s", s.Responses429, int64(1))
		r.expect("surprises", s.Surprise429, int64(1))
		r.expect("limit violations", s.LimitViolations, int64(0))
		r.expect("budget taken", s.Accepted, int64(4))
	})
}

func TestHeldPauseRejectsAllAndDoesNotCreep(t *testing.T) {
	inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultSurprise429, RetryAfter: 5 * time.Second, Hold: true})
		r.mustGet(429)
		r.at(300 * time.Millisecond)
		r.expect("Retry-After", r.mustGet(429).int("Retry-After"), 5)
		r.at(5 * time.Second)
		r.mustGet(200)
		r.expect("pause violations", r.Stats().PauseViolations, int64(1))
		r.expect("surprises", r.Stats().Surprise429, int64(2))
	})
}

func TestPauseOfOneEndpointLeavesTheOthersAlone(t *testing.T) {
	for _, hold := range []bool{false, true} {
		inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
			r.inject(Fault{Kind: FaultSurprise429, Endpoint: PostMaveChat, RetryAfter: 9 * time.Second, Remaining: -1, Hold: hold})
			got := r.do(PostMaveChat, "{}")
			r.expect("remaining", got.int("X-RateLimit-Remaining"), 600)
			r.at(time.Second)
			r.mustGet(200)
			r.expect("pause violations", r.Stats().PauseViolations, int64(0))
			want := 200
			if hold {
				want = 429
			}
			r.expect("chat", r.do(PostMaveChat, "{}").status, want)
			r.expect("pause violations", r.Stats().PauseViolations, int64(1))
			r.mustGet(200)
			r.expect("pause violations", r.Stats().PauseViolations, int64(1))
			r.at(9 * time.Second)
			r.expect("chat", r.do(PostMaveChat, "{}").status, 200)
			r.expect("pause violations", r.Stats().PauseViolations, int64(1))
		})
	}
}

func TestOrdinary429OrdersAPauseToo(t *testing.T) {
	inBubble(t, Config{Limit: 1, NoLatency: true}, func(t *testing.T, r *rig) {
		r.mustGet(200)
		r.mustGet(429)
		r.expect("pause violations", r.Stats().PauseViolations, int64(0))
		r.at(time.Second)
		r.mustGet(429)
		r.expect("pause violations", r.Stats().PauseViolations, int64(1))
		r.at(time.Minute)
		r.mustGet(200)
		r.expect("pause violations", r.Stats().PauseViolations, int64(1))
	})
}

func TestUnheeded503IsCountedApart(t *testing.T) {
	inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
		r.inject(Fault{Kind: FaultError, Status: 503, RetryAfter: 3 * time.Second})
		r.mustGet(503)
		r.at(2 * time.Second)
		r.mustGet(200)
		r.do(PostGenerations, "")
		r.at(3 * time.Second)
		r.mustGet(200)
		s := r.Stats()
		r.expect("unheeded", s.Unheeded503, int64(1))
		r.expect("pause violations", s.PauseViolations, int64(0))
	})
}
