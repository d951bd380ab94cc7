// Package mavera holds the facts about the Mavera API that Fleetlimit needs:
// what each tier allows, which endpoints allow only so many calls at once, and
// how its responses tell about the budget. All of it is data, taken from the
// public documentation.
package mavera

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
)

// BaseURL is where the API is served.
const BaseURL = "https://app.mavera.io" + basePath

const basePath = "/api/v1"

// Tier is what an API key was sold as. Its value is its name in lower case.
type Tier string

// The tiers, from the smallest.
const (
	Starter      Tier = "starter"
	Basic        Tier = "basic"
	Professional Tier = "professional"
	Enterprise   Tier = "enterprise"
)

// Tiers returns all tiers, from the smallest.
func Tiers() []Tier {
	return []Tier{Starter, Basic, Professional, Enterprise}
}

// ParseTier returns the tier with the given name, in whatever case.
func ParseTier(name string) (Tier, error) {
	t := Tier(strings.ToLower(name))
	if !slices.Contains(Tiers(), t) {
		return "", fmt.Errorf("fleetlimit: no Mavera tier %q: must be %s, %s, %s or %s", name, Starter, Basic, Professional, Enterprise)
	}
	return t, nil
}

// RequestsPerMinute is the budget of one API key of this tier, whatever the
// endpoint; 0 for an unknown tier.
func (t Tier) RequestsPerMinute() int {
	switch t {
	case Starter:
		return 60
	case Basic:
		return 120
	case Professional:
		return 240
	case Enterprise:
		return 600
	}
	return 0
}

// The endpoints that need a slot.
const (
	Chat          = "POST /mave/chat"
	FocusGroups   = "POST /focus-groups"
	VideoAnalyses = "POST /video-analyses"
)

// Policy is what one API key of the tier may do, with the library's default
// headroom. [coordinator.New] refuses that of an unknown tier.
func Policy(t Tier) coordinator.Policy {
	return coordinator.Policy{
		Limit:  t.RequestsPerMinute(),
		Window: time.Minute,
		Endpoints: []coordinator.Endpoint{
			{Pattern: Chat, Slots: 10},
			{Pattern: FocusGroups, Slots: 5},
			// An analysis lasts 2 to 10 minutes. The TTL outlives the longest,
			// for a job that nobody polls.
			{Pattern: VideoAnalyses, Slots: 3, JobTTL: coordinator.DefaultJobTTL},
		},
	}
}

// Profile tells the client how the API speaks.
func Profile() client.Profile {
	return client.Profile{
		Name:     "mavera",
		BasePath: basePath,
		Dialects: []client.Dialect{client.XRateLimit},
		Jobs: []client.Job{{
			Start:  VideoAnalyses,
			Poll:   "GET /video-analyses/{id}",
			ID:     "id",
			Status: "status",
			Done:   []string{"completed", "failed", "cancelled"},
		}},
	}
}
