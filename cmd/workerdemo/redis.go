//go:build !container

package main

import (
	"fmt"

	"github.com/alicebob/miniredis/v2"
)

// startRedis starts a Redis in memory and returns its URL.
func startRedis() (url string, stop func(), err error) {
	mini := miniredis.NewMiniRedis()
	mini.ClockTTL(true)
	if err := mini.Start(); err != nil {
		return "", nil, fmt.Errorf("starting the embedded Redis: %w", err)
	}
	return "redis://" + mini.Addr(), mini.Close, nil
}
