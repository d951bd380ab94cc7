package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fleetlimit/fleetlimit/page"
)

// farewell is how long requests that are being answered may take at the end.
const farewell = time.Second

// serveOperator serves what an operator wants of a process: the live page, its
// metrics, and whether it lives, at the address that it returns. A process without Redis
// lives: it works on, degraded. The end is also that of the page.
func serveOperator(addr string, registry *prometheus.Registry, live *page.Page, log *slog.Logger) (at string, stop func(), err error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("-http %q: %w", addr, err)
	}
	return listener.Addr().String(), serveOperatorOn(listener, registry, live, log), nil
}

func serveOperatorOn(listener net.Listener, registry *prometheus.Registry, live *page.Page, log *slog.Logger) (stop func()) {
	mux := http.NewServeMux()
	mux.Handle("/", live)
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	server.RegisterOnShutdown(live.Close) // who watches would keep it waiting
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), farewell)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
		<-ended // http.ErrServerClosed
	}
}
