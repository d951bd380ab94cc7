package coordinator

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// KeyError says that one of the account's keys in Redis holds something that is not
// the fleet's. Nothing that needs it is admitted until it is deleted. What was in it before
// is forgotten; docs/operations.md says of each key what that costs.
type KeyError struct {
	Key  string
	Type string // what Redis says it is
	Want string // what it should be
	Err  error  // of Redis
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("fleetlimit: the Redis key %q holds a %s, want a %s (WRONGTYPE): delete it", e.Key, e.Type, e.Want)
}

func (e *KeyError) Unwrap() error { return e.Err }

// typeOf is the type that a key of an account should have.
func typeOf(key string) string {
	_, what, _ := strings.Cut(key, "}:")
	switch kind, _, _ := strings.Cut(what, ":"); kind {
	case "account", "backoff", "policies":
		return "hash"
	case "window", "timeline":
		return "list"
	case "job":
		return "string"
	}
	return "zset"
}

// nameKey finds which of the keys is behind a WRONGTYPE, of which Redis does not say it.
func nameKey(ctx context.Context, rdb redis.UniversalClient, keys []any, err error) error {
	if !strings.Contains(err.Error(), "WRONGTYPE") {
		return err
	}
	for _, k := range keys {
		if problem, _ := checkKey(ctx, rdb, fmt.Sprint(k), err); problem != nil {
			return problem
		}
	}
	return err
}

// checkKey returns a KeyError as problem if a key holds something that is not the fleet's.
func checkKey(ctx context.Context, rdb redis.UniversalClient, key string, cause error) (problem, err error) {
	kind, err := rdb.Type(ctx, key).Result()
	if err != nil || kind == "none" || kind == typeOf(key) {
		return nil, err
	}
	return &KeyError{Key: key, Type: kind, Want: typeOf(key), Err: cause}, nil
}
