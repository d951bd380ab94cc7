package mockapi

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	oairesponses "github.com/openai/openai-go/v3/responses"
)

func (r *rig) openAI() openai.Client {
	return openai.NewClient(
		option.WithBaseURL(r.url), option.WithAPIKey(testKey),
		option.WithHTTPClient(r.client), option.WithMaxRetries(0),
	)
}

var question = oairesponses.ResponseNewParams{
	Model: "mavera-1",
	Input: oairesponses.ResponseNewParamsInputUnion{OfString: openai.String("Who buys this?")},
}

func TestOpenAISDKReadsAResponse(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		sdk := r.openAI()
		got, err := sdk.Responses.New(t.Context(), question)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(got.OutputText(), "Part 1 of the answer. Part 2") {
			t.Errorf("text %q", got.OutputText())
		}
		r.expect("status", got.Status, oairesponses.ResponseStatusCompleted)
		r.expect("model", got.Model, "mavera-1")
		r.expect("tokens", got.Usage.TotalTokens, got.Usage.InputTokens+got.Usage.OutputTokens)
		r.expect("credits", got.Usage.JSON.ExtraFields["credits_used"].Raw(), "1")
		if got.Usage.InputTokens == 0 || got.Usage.OutputTokens == 0 || got.CreatedAt == 0 || got.ID == "" {
			t.Errorf("incomplete: %s", got.RawJSON())
		}
	})
}

func TestOpenAISDKReadsAStream(t *testing.T) {
	cfg := Config{Latency: map[string]Latency{PostResponses: {Mean: 8 * time.Second}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		sdk := r.openAI()
		stream := sdk.Responses.NewStreaming(t.Context(), question)
		var deltas strings.Builder
		var types []string
		var completed oairesponses.Response
		for n := int64(0); stream.Next(); n++ {
			event := stream.Current()
			r.expect("sequence number", event.SequenceNumber, n)
			if len(types) == 0 || types[len(types)-1] != event.Type {
				types = append(types, event.Type)
			}
			switch e := event.AsAny().(type) {
			case oairesponses.ResponseTextDeltaEvent:
				deltas.WriteString(e.Delta)
			case oairesponses.ResponseCompletedEvent:
				completed = e.Response
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		r.expect("events", strings.Join(types, " "), "response.created response.in_progress "+
			"response.output_item.added response.content_part.added response.output_text.delta "+
			"response.output_text.done response.content_part.done response.output_item.done response.completed")
		r.expect("text", deltas.String(), completed.OutputText())
		r.expect("duration", r.Since(), 8*time.Second)
		r.expect("status", completed.Status, oairesponses.ResponseStatusCompleted)
		r.expect("credits", r.Stats().CreditsUsed, int64(1))
	})
}

func TestOpenAISDKReadsAnError(t *testing.T) {
	inBubble(t, Config{Faults: []Fault{{Kind: FaultSurprise429}}}, func(t *testing.T, r *rig) {
		sdk := r.openAI()
		_, err := sdk.Responses.New(t.Context(), question)
		var apiErr *openai.Error
		if !errors.As(err, &apiErr) {
			t.Fatalf("error %v", err)
		}
		r.expect("status", apiErr.StatusCode, 429)
		r.expect("code", apiErr.Code, "rate_limit_exceeded")
		r.expect("type", apiErr.Type, "rate_limit_error")
	})
}
