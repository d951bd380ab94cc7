package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/page"
)

// servePage serves the live page on a loopback address and returns its URL.
func servePage(rdb redis.UniversalClient, addr string) (url string, stop func(), err error) {
	live, err := page.New(rdb, page.Options{})
	if err != nil {
		return "", nil, err
	}
	listener, err := page.Listen(addr, false)
	if err != nil {
		return "", nil, badFlag("http", addr, err.Error())
	}
	server := &http.Server{Handler: live, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return fmt.Sprintf("http://%s/", listener.Addr()), func() {
		live.Close()
		server.Close()
		<-ended // http.ErrServerClosed
	}, nil
}
