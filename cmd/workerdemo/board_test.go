package main

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// given says who was given how many, and which items.
func given(orders []order) (count map[string]int, ids map[string][]int) {
	count, ids = map[string]int{}, map[string][]int{}
	for _, o := range orders {
		count[o.worker]++
		ids[o.worker] = append(ids[o.worker], o.item.ID)
	}
	return count, ids
}

func TestWorkIsSpreadEvenlyAmongThoseWhoWantIt(t *testing.T) {
	b := newBoard([]portion{{"POST /a", 10}, {"POST /b", 1}})
	b.want("w1", "POST /a", 8)
	b.want("w2", "POST /a", 8)
	b.want("w3", "POST /b", 8)
	count, _ := given(b.assign())
	if diff := cmp.Diff(map[string]int{"w1": 5, "w2": 5, "w3": 1}, count); diff != "" {
		t.Error(diff)
	}
	if more := b.assign(); len(more) != 0 || b.left != 11 {
		t.Errorf("%d more orders, %d left; want 0 and 11", len(more), b.left)
	}
}

func TestWhoeverHasHadTheFewestIsServedFirst(t *testing.T) {
	b := newBoard([]portion{{"POST /a", 10}})
	b.want("w1", "POST /a", 4)
	b.assign()
	b.want("w1", "POST /a", 6)
	b.want("w2", "POST /a", 4)
	count, _ := given(b.assign())
	if diff := cmp.Diff(map[string]int{"w1": 2, "w2": 4}, count); diff != "" {
		t.Error(diff)
	}
}

func TestTheWorkOfTheDeadGoesToOthersFirstAndWithItsJob(t *testing.T) {
	b := newBoard([]portion{{"POST /a", 4}})
	b.want("w1", "POST /a", 3)
	b.assign() // 1, 2 and 3
	b.started("w1", 2, "job_2")
	b.started("w2", 3, "stolen") // not his
	if !b.done("w1", 1) || b.done("w1", 1) || b.done("w2", 2) {
		t.Error("an item ends once, for the one who has it")
	}
	if n := b.lost("w1"); n != 2 {
		t.Errorf("%d items lost, want 2", n)
	}
	b.want("w2", "POST /a", 8)
	orders := b.assign()
	if diff := cmp.Diff("[{w2 {2 POST /a job_2}} {w2 {3 POST /a }} {w2 {4 POST /a }}]", fmt.Sprint(orders)); diff != "" {
		t.Error(diff)
	}
	if b.done("w1", 2) || !b.done("w2", 2) {
		t.Error("the item is the heir's")
	}
	if b.left != 2 {
		t.Errorf("%d left, want 2", b.left)
	}
}

func TestTheDeadGetNothing(t *testing.T) {
	b := newBoard([]portion{{"POST /a", 2}})
	b.want("w1", "POST /a", 8)
	b.lost("w1")
	if orders := b.assign(); len(orders) != 0 {
		t.Errorf("orders %v", orders)
	}
}
