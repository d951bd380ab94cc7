package client

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// routes find what a request means to the profile. The standard library's
// ServeMux does the matching, one for the endpoints and one for the polls: a
// request may be both.
type routes struct {
	basePath  string
	endpoints *http.ServeMux
	polls     *http.ServeMux
	other     string          // the pattern of requests that are of no endpoint
	jobs      map[string]*Job // by Start
}

// route is what a request means.
type route struct {
	endpoint string // the endpoint whose slot it needs; empty: none
	start    *Job   // the job it starts, or nil
	poll     *Job   // the job it asks for, or nil
	job      string // the id it asks for, as it stands in the path
}

func newRoutes(profile Profile, endpoints []coordinator.Endpoint) (*routes, error) {
	rs := &routes{
		basePath: strings.TrimRight(profile.BasePath, "/"),
		jobs:     make(map[string]*Job, len(profile.Jobs)),
	}
	if rs.basePath != "" && !strings.HasPrefix(rs.basePath, "/") {
		return nil, &coordinator.ConfigError{Field: "Profile.BasePath", Value: profile.BasePath, Reason: "must begin with a slash"}
	}

	slots := newPatterns()
	for i, e := range endpoints {
		field := fmt.Sprintf("Policy.Endpoints[%d].Pattern", i)
		if err := slots.add(field, e.Pattern, http.NotFoundHandler()); err != nil {
			return nil, err
		}
	}
	polls := newPatterns()
	for i, j := range profile.Jobs {
		field := fmt.Sprintf("Profile.Jobs[%d]", i)
		if err := j.check(field, endpoints); err != nil {
			return nil, err
		}
		if rs.jobs[j.Start] != nil {
			return nil, &coordinator.ConfigError{Field: field + ".Start", Value: j.Start, Reason: "must not occur twice"}
		}
		job := j.withDefaults()
		rs.jobs[j.Start] = &job
		if err := polls.add(field+".Poll", j.Poll, pollHandler{&job}); err != nil {
			return nil, err
		}
	}
	rs.endpoints, rs.polls = slots.mux, polls.mux
	rs.other = slots.complete()
	polls.complete()
	return rs, nil
}

// match never changes req.
func (rs *routes) match(req *http.Request) route {
	key := rs.key(req)
	var r route
	if name, ok := endpointOf(req.Context()); ok {
		r.endpoint = name
	} else if _, name := rs.endpoints.Handler(key); name != rs.other {
		r.endpoint = name
	}
	r.start = rs.jobs[r.endpoint]

	if h, _ := rs.polls.Handler(key); h != nil {
		if _, ok := h.(pollHandler); ok {
			found := &pollFound{}
			rs.polls.ServeHTTP(found, key)
			r.poll, r.job = found.job, found.id
		}
	}
	return r
}

// key is the request as the patterns see it: method and path below the base
// path, no host. A slash at the end is dropped, since most servers do not care
// and a slot must not depend on it.
func (rs *routes) key(req *http.Request) *http.Request {
	key := &http.Request{Method: req.Method, URL: &url.URL{}}
	if key.Method == "" {
		key.Method = http.MethodGet
	}
	if req.URL != nil {
		key.URL.Path = rs.below(req.URL.Path)
		key.URL.RawPath = rs.below(req.URL.RawPath)
	}
	if key.URL.Path == "" {
		key.URL.Path = "/"
	}
	return key
}

func (rs *routes) below(path string) string {
	if rest, ok := strings.CutPrefix(path, rs.basePath); ok && (rest == "" || rest[0] == '/') {
		path = rest
	}
	return strings.TrimRight(path, "/")
}

// pollHandler marks a poll pattern in the mux. ServeMux gives the wildcards of
// a match to the handler alone, so the handler hands them back through its
// response writer.
type pollHandler struct{ job *Job }

func (h pollHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if found, ok := w.(*pollFound); ok {
		found.job, found.id = h.job, r.PathValue("id")
	}
}

type pollFound struct {
	job *Job
	id  string
}

func (*pollFound) Header() http.Header         { return http.Header{} }
func (*pollFound) Write(b []byte) (int, error) { return len(b), nil }
func (*pollFound) WriteHeader(int)             {}

// patterns is a mux under construction.
type patterns struct {
	mux  *http.ServeMux
	list []string
}

func newPatterns() *patterns {
	return &patterns{mux: http.NewServeMux()}
}

func (ps *patterns) add(field, pattern string, h http.Handler) error {
	// ServeMux takes "METHOD  HOST/PATH", and requests are matched without
	// their host.
	_, path, hasMethod := strings.Cut(pattern, " ")
	if !hasMethod {
		path = pattern
	}
	if !strings.HasPrefix(strings.TrimLeft(path, " \t"), "/") {
		return &coordinator.ConfigError{Field: field, Value: pattern, Reason: `must be "METHOD /path" or "/path", without a host`}
	}
	if err := handle(ps.mux, pattern, h); err != nil {
		reason := err.Error()
		for _, other := range ps.list {
			if collide(pattern, other) {
				reason = fmt.Sprintf("matches the same requests as %q", other)
			}
		}
		return &coordinator.ConfigError{Field: field, Value: pattern, Reason: reason}
	}
	ps.list = append(ps.list, pattern)
	return nil
}

// complete gives all requests that no pattern matches one of their own, and returns it.
// Otherwise ServeMux would look, for each of them, for the methods that the path allows.
func (ps *patterns) complete() (other string) {
	if handle(ps.mux, "/", http.NotFoundHandler()) != nil {
		return "" // there is such a pattern already, and it matches them
	}
	return "/"
}

// handle turns ServeMux's panic into an error.
func handle(mux *http.ServeMux, pattern string, h http.Handler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	mux.Handle(pattern, h)
	return nil
}

func collide(pattern, other string) bool {
	mux := http.NewServeMux()
	return handle(mux, other, http.NotFoundHandler()) == nil && handle(mux, pattern, http.NotFoundHandler()) != nil
}
