package mockapi

import (
	"strings"
	"time"
)

// Patterns of the endpoints, as they appear in Config and Stats. Each is also
// served below /api/v1.
const (
	PostResponses     = "POST /responses"
	GetPersonas       = "GET /personas"
	PostGenerations   = "POST /generations"
	PostMaveChat      = "POST /mave/chat"
	PostFocusGroups   = "POST /focus-groups"
	PostVideoAnalyses = "POST /video-analyses"
	GetVideoAnalysis  = "GET /video-analyses/{id}"
	// Other stands for every path that does not exist; it is answered 404.
	Other = "other"
)

// endpoint is an index into arrays with one place per pattern.
type endpoint int

const (
	responses endpoint = iota
	personas
	generations
	maveChat
	focusGroups
	videoAnalyses
	videoAnalysis
	other
	endpoints // their number
)

// mavera holds what is documented, or plausible, of each endpoint.
var mavera = [endpoints]struct {
	pattern string
	slots   int // 0: no cap
	latency Latency
	credits int // usage.credits_used of one success
}{
	responses:     {PostResponses, 0, Latency{2 * time.Second, 0.5}, 1},
	personas:      {GetPersonas, 0, Latency{100 * time.Millisecond, 0.5}, 0},
	generations:   {PostGenerations, 0, Latency{5 * time.Second, 0.5}, 5},
	maveChat:      {PostMaveChat, 10, Latency{60 * time.Second, 0.5}, 10},
	focusGroups:   {PostFocusGroups, 5, Latency{3 * time.Minute, 2. / 3}, 25},
	videoAnalyses: {PostVideoAnalyses, 3, Latency{300 * time.Millisecond, 0.5}, 50},
	videoAnalysis: {GetVideoAnalysis, 0, Latency{100 * time.Millisecond, 0.5}, 0},
	other:         {Other, 0, Latency{}, 0},
}

func (e endpoint) String() string { return mavera[e].pattern }

// byPattern lets a request find its endpoint by "METHOD /path".
var byPattern = func() map[string]endpoint {
	m := make(map[string]endpoint, endpoints)
	for e := range endpoints {
		m[mavera[e].pattern] = e
	}
	return m
}()

func endpointOf(pattern string) (endpoint, bool) {
	e, ok := byPattern[pattern]
	return e, ok
}

// route returns the endpoint of a request; for a job, with the job's id. path
// has lost its /api/v1 prefix.
func route(method, path string) (e endpoint, id string) {
	if id, ok := strings.CutPrefix(path, "/video-analyses/"); ok && method == "GET" && id != "" && !strings.Contains(id, "/") {
		return videoAnalysis, id
	}
	if e, ok := byPattern[method+" "+path]; ok && e != videoAnalysis {
		return e, ""
	}
	return other, ""
}
