package main

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/page"
)

// An indoor listener gives out the far ends of connections in memory, as the clock of a
// synctest bubble needs.
type indoor struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l indoor) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l indoor) Close() error { close(l.closed); return nil }

func (l indoor) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9464} }

func (l indoor) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	l.conns <- far
	return near, nil
}

// Who watches the live page neither keeps the process waiting nor is cut off: the stream
// ends as one that is complete, before the time for answers under way is over.
func TestWhoWatchesDoesNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		rdb := redis.NewClient(&redis.Options{
			Addr:            "127.0.0.1:6379",
			Dialer:          func(context.Context, string, string) (net.Conn, error) { return redistest.Dial(mini) },
			DisableIdentity: true, Protocol: 2,
		})
		live, err := page.New(rdb, page.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l := indoor{make(chan net.Conn), make(chan struct{})}
		stop := serveOperatorOn(l, prometheus.NewRegistry(), live, slog.New(slog.DiscardHandler))
		browser := http.Client{Transport: &http.Transport{DialContext: l.dial}}
		resp, err := browser.Get("http://localhost/events")
		if err != nil {
			t.Fatal(err)
		}
		stream := bufio.NewReader(resp.Body)
		if line, err := stream.ReadString('\n'); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("status %s, %q, %v: want a stream", resp.Status, line, err)
		}
		watched := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, stream)
			watched <- err
		}()
		synctest.Wait()

		begun := time.Now()
		stop()
		if took := time.Since(begun); took >= farewell {
			t.Errorf("the end took %v, all the time for answers under way", took)
		}
		if err := <-watched; err != nil {
			t.Errorf("the stream broke off: %v", err)
		}
		resp.Body.Close()
		live.Close()
		rdb.Close()
		mini.Close()
	})
}
