package main

import (
	"context"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

const endpoint = "POST /mave/chat"

// Ours: backoff, pace, window, slot and turn in one admission, and the slot's
// release.
var fleetlimit = impl{
	name: "fleetlimit", does: "backoff, pace, window, slot, turn; release",
	commands: []string{"evalsha", "eval"},
	open: func(s setup) (session, error) {
		rdb, err := s.client()
		if err != nil {
			return nil, err
		}
		fleet, err := coordinator.New(rdb, coordinator.Policy{
			Limit: farLimit, Burst: farLimit, Headroom: 1, Window: time.Minute,
			Endpoints: []coordinator.Endpoint{{Pattern: endpoint, Slots: 10_000}},
		}, coordinator.Options{Account: s.account, Worker: s.worker})
		if err != nil {
			rdb.Close()
			return nil, err
		}
		return &fleetSession{fleet, make([]*coordinator.Permit, s.callers), rdb.Close}, nil
	},
}

type fleetSession struct {
	fleet   *coordinator.Coordinator
	permits []*coordinator.Permit
	hangUp  func() error
}

func (s *fleetSession) Admit(ctx context.Context, caller int) (err error) {
	s.permits[caller], err = s.fleet.Acquire(ctx, coordinator.Request{Endpoint: endpoint})
	return err
}

func (s *fleetSession) Release(_ context.Context, caller int) error {
	s.permits[caller].Release()
	return nil
}

func (s *fleetSession) Close() error {
	err := s.fleet.Close()
	s.hangUp()
	return err
}
