package client_test

import (
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

var question = responses.ResponseNewParams{
	Model: "mavera-1",
	Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Who buys this?")},
}

// sdk is the official SDK as its users make it, but for the HTTP client.
func (r *rig) sdk(opts client.Options) openai.Client {
	w := r.worker("sdk", fullUse(mavera.Starter), opts)
	return openai.NewClient(option.WithAPIKey(apiKey), option.WithBaseURL(r.pipe.URL()), option.WithHTTPClient(w))
}

func TestOpenAISDKAsks100TimesWithoutA429(t *testing.T) {
	inVirtualTime(t, mockapi.Config{Tier: "starter", NoLatency: true}, func(t *testing.T, r *rig) {
		sdk := r.sdk(client.Options{})
		for i := range 100 {
			got, err := sdk.Responses.New(t.Context(), question)
			if err != nil {
				t.Fatalf("question %d: %v", i+1, err)
			}
			if got.Status != responses.ResponseStatusCompleted || got.OutputText() == "" {
				t.Errorf("answer %s", got.RawJSON())
			}
		}
		if s := r.mustBeClean(); s.Accepted != 100 {
			t.Errorf("%d requests, want 100", s.Accepted)
		}
	})
}

func TestOpenAISDKReadsAStreamAsItComes(t *testing.T) {
	cfg := mockapi.Config{Latency: map[string]mockapi.Latency{mockapi.PostResponses: {Mean: 8 * time.Second}}, StreamChunks: 8}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		sdk := r.sdk(client.Options{})
		start := time.Now()
		stream := sdk.Responses.NewStreaming(t.Context(), question)
		var deltas strings.Builder
		var whole string
		var first time.Duration
		for stream.Next() {
			switch e := stream.Current().AsAny().(type) {
			case responses.ResponseTextDeltaEvent:
				if first == 0 {
					first = time.Since(start)
				}
				deltas.WriteString(e.Delta)
			case responses.ResponseCompletedEvent:
				whole = e.Response.OutputText()
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
		if whole == "" || deltas.String() != whole {
			t.Errorf("pieces %q of %q", deltas.String(), whole)
		}
		if all := time.Since(start); first > 2*time.Second || all < 8*time.Second {
			t.Errorf("the first piece came after %v, the last after %v", first, all)
		}
		r.mustBeClean()
	})
}

func TestOpenAISDKIsSparedA503(t *testing.T) {
	cfg := mockapi.Config{NoLatency: true, Faults: []mockapi.Fault{{Kind: mockapi.FaultError, Status: 503, RetryAfter: 3 * time.Second}}}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		var retried int
		sdk := r.sdk(client.Options{OnAttempt: func(a client.Attempt) {
			if a.Retried {
				retried++
			}
		}})
		if _, err := sdk.Responses.New(t.Context(), question); err != nil {
			t.Fatal(err)
		}
		if retried != 1 {
			t.Errorf("%d retries, want 1", retried)
		}
		r.mustBeClean()
	})
}
