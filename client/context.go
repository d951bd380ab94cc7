package client

import (
	"context"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

type (
	priorityKey struct{}
	endpointKey struct{}
)

// WithPriority returns a context whose requests wait with the given priority
// instead of [coordinator.Normal].
func WithPriority(ctx context.Context, p coordinator.Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// WithEndpoint returns a context whose requests count as calls of the named
// endpoint, whatever their method and path. The name is the pattern of one of
// the policy's endpoints; the empty name stands for budget alone, no slot. With
// any other, requests fail with [coordinator.ErrUnknownEndpoint].
func WithEndpoint(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, endpointKey{}, name)
}

func priorityOf(ctx context.Context) coordinator.Priority {
	p, _ := ctx.Value(priorityKey{}).(coordinator.Priority)
	return p
}

func endpointOf(ctx context.Context) (name string, ok bool) {
	name, ok = ctx.Value(endpointKey{}).(string)
	return name, ok
}
