package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// Wire is a TCP connection's way that can be made bad: a proxy of toxiproxy.
type Wire struct {
	proxy    *toxiproxy.Proxy
	upstream string
}

// NewWire makes a good wire to an address. It ends with Close.
func NewWire(upstream string) (*Wire, error) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics write to a logger of their own
	port, err := redistest.FreePort()        // a wire that is cut leaves its port until it is mended
	if err != nil {
		return nil, err
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &Wire{toxiproxy.NewProxy(server, upstream, fmt.Sprint("127.0.0.1:", port), upstream), upstream}
	return w, w.proxy.Start()
}

// Addr is where the wire begins.
func (w *Wire) Addr() string { return w.proxy.Listen }

// Through returns a URL as seen through the wire, which must lead to its host.
func (w *Wire) Through(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host != w.upstream {
		panic(fmt.Sprintf("the wire leads to %s", w.upstream))
	}
	u.Host = w.Addr()
	return u.String()
}

// Direction of a toxic.
const (
	Requests = "upstream"   // towards the server
	Replies  = "downstream" // back from it
)

// Add makes the wire bad in one direction, connections that exist included. Kinds
// and attributes are those of toxiproxy: latency (latency, jitter: ms), bandwidth
// (rate: KB/s), timeout (timeout: ms, 0 for ever: data stops, the connection stays),
// reset_peer (timeout: ms), limit_data (bytes), slicer.
func (w *Wire) Add(kind, direction string, attributes map[string]int) error {
	if attributes == nil {
		attributes = map[string]int{}
	}
	text, err := json.Marshal(map[string]any{
		"type": kind, "name": kind + "_" + direction, "stream": direction, "toxicity": 1, "attributes": attributes,
	})
	if err != nil {
		return err
	}
	_, err = w.proxy.Toxics.AddToxicJson(bytes.NewReader(text))
	return err
}

// Heal makes the wire good again. Connections that have hung may stay hung.
func (w *Wire) Heal() { w.proxy.Toxics.ResetToxics(context.Background()) }

// Cut refuses connections, and ends those that exist.
func (w *Wire) Cut() { w.proxy.Stop() }

// Mend ends a cut.
func (w *Wire) Mend() error { return w.proxy.Start() }

// Close ends the wire.
func (w *Wire) Close() {
	w.Heal()
	w.proxy.Stop()
}
