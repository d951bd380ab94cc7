package coordinator_test

import (
	"context"
	"fmt"
	"log"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A permit by hand, for work that no HTTP client of this process does: heartbeats renew its
// slot until it is released.
func ExampleCoordinator_Acquire() {
	mini := miniredis.NewMiniRedis() // stands in for a real Redis
	if err := mini.Start(); err != nil {
		log.Fatal(err)
	}
	defer mini.Close()
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer rdb.Close()
	fleet, err := coordinator.New(rdb, coordinator.Policy{
		Limit:     600,
		Endpoints: []coordinator.Endpoint{{Pattern: "POST /uploads", Slots: 2}},
	}, coordinator.Options{Account: "acme"})
	if err != nil {
		log.Fatal(err)
	}
	defer fleet.Close()

	permit, err := fleet.Acquire(context.Background(), coordinator.Request{Endpoint: "POST /uploads"})
	if err != nil {
		log.Fatal(err)
	}
	defer permit.Release()
	work, cancel := permit.Context(context.Background()) // ends if the slot is lost
	defer cancel()
	permit.Sent() // when the work begins
	fmt.Println(work.Err())
	// Output: <nil>
}
