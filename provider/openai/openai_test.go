package openai_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/openai"
)

func TestPolicyIsABudgetWithoutSlots(t *testing.T) {
	want := coordinator.Policy{Limit: 500, Window: time.Minute}
	if diff := cmp.Diff(want, openai.Policy(500)); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if err := openai.Policy(500).Validate(); err != nil {
		t.Error(err)
	}
	if err := openai.Policy(0).Validate(); err == nil {
		t.Error("a policy of no requests is valid")
	}
}

func TestProfileSpeaksOpenAI(t *testing.T) {
	want := client.Profile{Name: "openai", BasePath: "/v1", Dialects: []client.Dialect{client.OpenAI}}
	if diff := cmp.Diff(want, openai.Profile()); diff != "" {
		t.Errorf("profile (-want +got):\n%s", diff)
	}
	if openai.BaseURL != "https://api.openai.com/v1" {
		t.Errorf("BaseURL = %q", openai.BaseURL)
	}
}
