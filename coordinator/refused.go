package coordinator

import (
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// passing lists the answers of Redis that asking again may change.
var passing = []string{
	"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
	"OOM", "BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED", "NOSCRIPT", "ERR max number of clients",
}

// refused tells an answer of Redis that will stay (a wrong password, a key of
// another type) from one that may pass, and from no answer at all.
func refused(err error) bool {
	var bad *ReplyError
	if errors.As(err, &bad) {
		return true
	}
	var answer redis.Error
	if !errors.As(err, &answer) {
		return false
	}
	return !slices.ContainsFunc(passing, func(prefix string) bool {
		return strings.HasPrefix(answer.Error(), prefix)
	})
}
