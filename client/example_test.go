package client_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// Every process of the fleet does this, with the same Redis and the same key.
func Example() {
	redisAddr, baseURL, stop := startRedisAndAPI()
	defer stop()
	key := "mvra_live_example"

	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()
	fleet, err := coordinator.New(rdb, mavera.Policy(mavera.Professional), coordinator.Options{APIKey: key})
	if err != nil {
		log.Fatal(err)
	}
	defer fleet.Close()
	transport, err := client.New(fleet, mavera.Profile(), client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	api := transport.Client() // an *http.Client: use it as any other, or hand it to an SDK
	defer api.CloseIdleConnections()

	for range 3 {
		body := strings.NewReader(`{"model":"mavera-1","input":"Who buys this?"}`)
		req, err := http.NewRequest("POST", baseURL+"/responses", body)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := api.Do(req) // waits for its turn
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close() // gives the slot back, where there is one
		fmt.Println(resp.Status)
	}
	// Output:
	// 200 OK
	// 200 OK
	// 200 OK
}

// What a request begins may go on when its response has been read, where the client cannot
// see it. A hold keeps the endpoint's slot until then.
func ExampleWithHold() {
	redisAddr, baseURL, stop := startRedisAndAPI()
	defer stop()
	key := "mvra_live_example"
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()
	fleet, err := coordinator.New(rdb, mavera.Policy(mavera.Professional), coordinator.Options{APIKey: key})
	if err != nil {
		log.Fatal(err)
	}
	defer fleet.Close()
	transport, err := client.New(fleet, mavera.Profile(), client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	api := transport.Client()
	defer api.CloseIdleConnections()

	ctx, held := client.WithHold(context.Background())
	req, err := http.NewRequestWithContext(ctx, "POST", baseURL+"/mave/chat", strings.NewReader(`{"message":"Who buys this?"}`))
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := api.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close() // does not give the slot back

	work, cancel := held.Context(context.Background()) // ends if the slot is lost
	defer cancel()
	fmt.Println(resp.Status, held.Held(), work.Err())
	held.Release() // the work is done
	// Output: 200 OK true <nil>
}

// startRedisAndAPI stands in for a real Redis and the real API.
func startRedisAndAPI() (redisAddr, baseURL string, stop func()) {
	mini := miniredis.NewMiniRedis()
	if err := mini.Start(); err != nil {
		log.Fatal(err)
	}
	api, err := mockapi.New(mockapi.Config{NoLatency: true})
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(api)
	return mini.Addr(), server.URL + "/api/v1", func() {
		server.Close()
		api.Close()
		mini.Close()
	}
}
