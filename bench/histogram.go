package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are at most 1/16 wide, so that no
// measuring allocates.
type histogram [64 * 16]uint32

func bucketOf(d time.Duration) int {
	ns := uint64(max(d, 16))
	shift := bits.Len64(ns) - 5
	return (shift+1)*16 + int(ns>>shift) - 16
}

// value is the middle of a bucket.
func value(bucket int) time.Duration {
	shift := bucket/16 - 1
	low := uint64(bucket%16+16) << shift
	return time.Duration(low + (uint64(1)<<shift)/2)
}

func (h *histogram) add(d time.Duration) { h[bucketOf(d)]++ }

func (h *histogram) merge(other *histogram) {
	for i, n := range other {
		h[i] += n
	}
}

// quantile returns the duration below which the share q of all lies.
func (h *histogram) quantile(q float64) time.Duration {
	var all uint64
	for _, n := range h {
		all += uint64(n)
	}
	rank := uint64(q * float64(all))
	for i, n := range h {
		if uint64(n) > rank {
			return value(i)
		}
		rank -= uint64(n)
	}
	return 0
}
