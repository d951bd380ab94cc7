package mavera_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

func TestPolicyCarriesTheDocumentedNumbers(t *testing.T) {
	for tier, limit := range map[mavera.Tier]int{
		mavera.Starter:      60,
		mavera.Basic:        120,
		mavera.Professional: 240,
		mavera.Enterprise:   600,
	} {
		want := coordinator.Policy{
			Limit:  limit,
			Window: 60 * time.Second,
			Endpoints: []coordinator.Endpoint{
				{Pattern: "POST /mave/chat", Slots: 10},
				{Pattern: "POST /focus-groups", Slots: 5},
				{Pattern: "POST /video-analyses", Slots: 3, JobTTL: 15 * time.Minute},
			},
		}
		if diff := cmp.Diff(want, mavera.Policy(tier)); diff != "" {
			t.Errorf("policy of %s (-want +got):\n%s", tier, diff)
		}
		if err := mavera.Policy(tier).Validate(); err != nil {
			t.Errorf("policy of %s: %v", tier, err)
		}
	}
}

func TestAnUnknownTierHasNoUsablePolicy(t *testing.T) {
	if err := mavera.Policy("platinum").Validate(); err == nil {
		t.Error("the policy of an unknown tier is valid")
	}
}

func TestProfileFollowsVideoAnalyses(t *testing.T) {
	want := client.Profile{
		Name:     "mavera",
		BasePath: "/api/v1",
		Dialects: []client.Dialect{client.XRateLimit},
		Jobs: []client.Job{{
			Start: "POST /video-analyses", Poll: "GET /video-analyses/{id}",
			ID: "id", Status: "status",
			Done: []string{"completed", "failed", "cancelled"},
		}},
	}
	if diff := cmp.Diff(want, mavera.Profile()); diff != "" {
		t.Errorf("profile (-want +got):\n%s", diff)
	}
}

func TestBaseURLIsTheDocumentedOne(t *testing.T) {
	if mavera.BaseURL != "https://app.mavera.io/api/v1" {
		t.Errorf("BaseURL = %q", mavera.BaseURL)
	}
}

func TestParseTier(t *testing.T) {
	for _, tier := range mavera.Tiers() {
		if got, err := mavera.ParseTier(string(tier)); got != tier || err != nil {
			t.Errorf("ParseTier(%q) = %q, %v", tier, got, err)
		}
	}
	if got, err := mavera.ParseTier("Enterprise"); got != mavera.Enterprise || err != nil {
		t.Errorf("ParseTier(Enterprise) = %q, %v", got, err)
	}
	for _, name := range []string{"", "platinum", " basic"} {
		if got, err := mavera.ParseTier(name); err == nil {
			t.Errorf("ParseTier(%q) = %q, want an error", name, got)
		}
	}
}
