package fleet

import (
	"io"
	"log"
	"net/http/httptest"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// API is the judge, served on a port of 127.0.0.1.
type API struct {
	*mockapi.API
	URL  string
	Addr string

	server *httptest.Server
}

// ServeAPI starts a judge.
func ServeAPI(cfg mockapi.Config) (*API, error) {
	api, err := mockapi.New(cfg)
	if err != nil {
		return nil, err
	}
	server := httptest.NewUnstartedServer(api)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	return &API{API: api, URL: server.URL, Addr: server.Listener.Addr().String(), server: server}, nil
}

// Close ends the judge.
func (a *API) Close() {
	_ = a.API.Close()
	a.server.CloseClientConnections()
	a.server.Close()
}

// Violations counts what the judge must never see, whatever fails: more than the
// limit, more calls at once than slots, a request in a pause.
func Violations(s mockapi.Stats) int64 {
	return s.LimitViolations + s.SlotViolations + s.PauseViolations
}
