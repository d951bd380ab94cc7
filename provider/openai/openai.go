// Package openai holds the facts about the OpenAI API that Fleetlimit needs.
// Its limits differ from one organisation and model to the next, so the number
// of requests is the caller's to give; no endpoint needs a slot.
package openai

import (
	"time"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
)

// BaseURL is where the API is served.
const BaseURL = "https://api.openai.com" + basePath

const basePath = "/v1"

// Policy is the policy of a key that may send so many requests per minute, with
// the library's default headroom. [coordinator.New] refuses a number below 1.
func Policy(requestsPerMinute int) coordinator.Policy {
	return coordinator.Policy{Limit: requestsPerMinute, Window: time.Minute}
}

// Profile tells the client how the API speaks.
func Profile() client.Profile {
	return client.Profile{
		Name:     "openai",
		BasePath: basePath,
		Dialects: []client.Dialect{client.OpenAI},
	}
}
