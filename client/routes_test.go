package client

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

func TestMatch(t *testing.T) {
	rs, err := newRoutes(testProfile, testPolicy.Endpoints)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		method, path           string
		endpoint, polled, name string
	}{
		{"POST", "/v1/chat", "POST /chat", "", ""},
		{"POST", "/v1/chat/", "POST /chat", "", ""},
		{"POST", "/v1/chat?stream=1", "POST /chat", "", ""},
		{"POST", "/v1//chat", "POST /chat", "", ""},
		{"POST", "/chat", "POST /chat", "", ""},
		{"GET", "/v1/chat", "", "", ""},
		{"", "/v1/chat", "", "", ""},
		{"POST", "/v1/chat/more", "", "", ""},
		{"POST", "/v10/chat", "", "", ""},
		{"POST", "/v2/chat", "", "", ""},
		{"GET", "/v1", "", "", ""},
		{"GET", "", "", "", ""},
		{"POST", "/v1/jobs", "POST /jobs", "", ""},
		{"GET", "/v1/jobs", "", "", ""},
		{"GET", "/v1/jobs/va_1", "", "POST /jobs", "va_1"},
		{"HEAD", "/v1/jobs/va_1", "", "POST /jobs", "va_1"},
		{"", "/v1/jobs/va_1", "", "POST /jobs", "va_1"},
		{"GET", "/v1/jobs/va%2F1", "", "POST /jobs", "va/1"},
		{"DELETE", "/v1/jobs/va_1", "", "", ""},
		{"GET", "/v1/jobs/va_1/frames", "", "", ""},
	}
	for _, tt := range tests {
		req := newRequest(t, t.Context(), tt.method, tt.path, "")
		req.Method = tt.method
		r := rs.match(req)
		polled := ""
		if r.poll != nil {
			polled = r.poll.Start
		}
		if r.endpoint != tt.endpoint || polled != tt.polled || r.job != tt.name {
			t.Errorf("%s %s: endpoint %q, poll of %q, job %q", tt.method, tt.path, r.endpoint, polled, r.job)
		}
		if (r.start != nil) != (tt.endpoint == "POST /jobs") {
			t.Errorf("%s %s: start = %v", tt.method, tt.path, r.start)
		}
	}
}

func TestTheNameOnTheContextGoesBeforeThePath(t *testing.T) {
	rs, err := newRoutes(testProfile, testPolicy.Endpoints)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"POST /jobs", ""} {
		req := newRequest(t, WithEndpoint(t.Context(), name), "POST", "/v1/chat", "")
		if r := rs.match(req); r.endpoint != name || (r.start != nil) != (name != "") {
			t.Errorf("named %q: endpoint %q, start %v", name, r.endpoint, r.start)
		}
	}
}

func TestBadConfigurationNamesFieldAndValue(t *testing.T) {
	endpoint := func(patterns ...string) (p coordinator.Policy) {
		p.Limit = 100
		for _, pattern := range patterns {
			p.Endpoints = append(p.Endpoints, coordinator.Endpoint{Pattern: pattern, Slots: 1, JobTTL: time.Minute})
		}
		return p
	}
	jobs := func(jobs ...Job) Profile { return Profile{Jobs: jobs} }
	tests := []struct {
		name    string
		policy  coordinator.Policy
		profile Profile
		opts    Options
		field   string
		value   any
	}{
		{"no pattern", endpoint(""), Profile{}, Options{}, "Policy.Endpoints[0].Pattern", ""},
		{"broken pattern", endpoint("POST /a", "POST /{"), Profile{}, Options{}, "Policy.Endpoints[1].Pattern", "POST /{"},
		{"broken method", endpoint("P@ST /a"), Profile{}, Options{}, "Policy.Endpoints[0].Pattern", "P@ST /a"},
		{"a host", endpoint("POST api.test/a"), Profile{}, Options{}, "Policy.Endpoints[0].Pattern", "POST api.test/a"},
		{"same pattern twice", endpoint("POST /a", "POST /a"), Profile{}, Options{}, "Policy.Endpoints[1].Pattern", "POST /a"},
		{"neither more specific", endpoint("POST /a/{x}", "POST /{x}/b"), Profile{}, Options{}, "Policy.Endpoints[1].Pattern", "POST /{x}/b"},
		{"base path without slash", endpoint("POST /a"), Profile{BasePath: "v1"}, Options{}, "Profile.BasePath", "v1"},
		{"unknown dialect", endpoint("POST /a"), Profile{Dialects: []Dialect{XRateLimit, "esperanto"}}, Options{}, "Profile.Dialects[1]", Dialect("esperanto")},
		{"job of no endpoint", endpoint("POST /a"), jobs(Job{Start: "POST /b", Poll: "GET /b/{id}"}), Options{}, "Profile.Jobs[0].Start", "POST /b"},
		{"job without TTL", coordinator.Policy{Limit: 1, Endpoints: []coordinator.Endpoint{{Pattern: "POST /a", Slots: 1}}}, jobs(Job{Start: "POST /a", Poll: "GET /a/{id}"}), Options{}, "Profile.Jobs[0].Start", "POST /a"},
		{"poll without id", endpoint("POST /a"), jobs(Job{Start: "POST /a", Poll: "GET /a/{job}"}), Options{}, "Profile.Jobs[0].Poll", "GET /a/{job}"},
		{"broken poll", endpoint("POST /a"), jobs(Job{Start: "POST /a", Poll: "GET /a{id}"}), Options{}, "Profile.Jobs[0].Poll", "GET /a{id}"},
		{"same job twice", endpoint("POST /a"), jobs(Job{Start: "POST /a", Poll: "GET /a/{id}"}, Job{Start: "POST /a", Poll: "GET /b/{id}"}), Options{}, "Profile.Jobs[1].Start", "POST /a"},
		{"polls collide", endpoint("POST /a", "POST /b"), jobs(Job{Start: "POST /a", Poll: "GET /x/{id}"}, Job{Start: "POST /b", Poll: "GET /x/{id}"}), Options{}, "Profile.Jobs[1].Poll", "GET /x/{id}"},
		{"backoff base", endpoint("POST /a"), Profile{}, Options{BackoffBase: -1}, "Options.BackoffBase", time.Duration(-1)},
		{"backoff cap", endpoint("POST /a"), Profile{}, Options{BackoffBase: time.Second, BackoffCap: time.Millisecond}, "Options.BackoffCap", time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newTransport(&fakeFleet{policy: tt.policy}, tt.profile, tt.opts)
			var bad *coordinator.ConfigError
			if !errors.As(err, &bad) {
				t.Fatalf("error = %v, want a *ConfigError", err)
			}
			if bad.Field != tt.field || bad.Value != tt.value || bad.Reason == "" || strings.Contains(bad.Reason, ".go:") {
				t.Errorf("error = %v, want one about %s = %v", err, tt.field, tt.value)
			}
		})
	}
	if _, err := New(nil, Profile{}, Options{}); err == nil {
		t.Error("a nil limiter is accepted")
	}
}

func TestEmptyProfileIsUsable(t *testing.T) {
	tr, err := newTransport(&fakeFleet{policy: coordinator.Policy{Limit: 1}}, Profile{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tr.base.(*http.Transport); !ok || tr.base == http.DefaultTransport {
		t.Errorf("base = %T, want a transport of its own", tr.base)
	}
	tr.Client().CloseIdleConnections()
}
