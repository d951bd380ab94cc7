package main

import "slices"

// A board holds the work: what nobody has taken yet, and who does what. What a
// dead worker has left undone goes back to it. Not safe for concurrent use.
type board struct {
	pending map[string][]item // by endpoint
	taken   map[int]taken     // by item
	wants   []*appetite
	left    int // items that have not ended
}

type taken struct {
	item   item
	worker string
	sent   bool // a request of it has gone out
}

// An appetite is how many more items of an endpoint a worker wants.
type appetite struct {
	worker, endpoint string
	want, had        int
}

// An order gives an item to a worker.
type order struct {
	worker string
	item   item
}

func newBoard(portions []portion) *board {
	b := &board{pending: make(map[string][]item), taken: make(map[int]taken)}
	for _, p := range portions {
		for range p.requests {
			b.left++
			b.pending[p.endpoint] = append(b.pending[p.endpoint], item{ID: b.left, Endpoint: p.endpoint})
		}
	}
	return b
}

func (b *board) want(worker, endpoint string, n int) {
	for _, a := range b.wants {
		if a.worker == worker && a.endpoint == endpoint {
			a.want += n
			return
		}
	}
	b.wants = append(b.wants, &appetite{worker: worker, endpoint: endpoint, want: n})
}

// assign hands out what is wanted, each item to the one who has had the fewest.
func (b *board) assign() []order {
	var orders []order
	for endpoint, items := range b.pending {
		for len(items) > 0 {
			a := b.hungriest(endpoint)
			if a == nil {
				break
			}
			it := items[0]
			items = items[1:]
			a.want--
			a.had++
			b.taken[it.ID] = taken{item: it, worker: a.worker}
			orders = append(orders, order{a.worker, it})
		}
		b.pending[endpoint] = items
	}
	return orders
}

func (b *board) hungriest(endpoint string) *appetite {
	var least *appetite
	for _, a := range b.wants {
		if a.endpoint == endpoint && a.want > 0 && (least == nil || a.had < least.had) {
			least = a
		}
	}
	return least
}

// sent notes that a request of the item has gone out.
func (b *board) sent(worker string, id int) {
	if t, ok := b.taken[id]; ok && t.worker == worker {
		t.sent = true
		b.taken[id] = t
	}
}

// started notes an item's job, for whoever may have to take it over.
func (b *board) started(worker string, id int, job string) {
	if t, ok := b.taken[id]; ok && t.worker == worker {
		t.item.Job = job
		b.taken[id] = t
	}
}

// done takes an item off the board. It is false for what the worker does not have.
func (b *board) done(worker string, id int) bool {
	t, ok := b.taken[id]
	if !ok || t.worker != worker {
		return false
	}
	delete(b.taken, id)
	b.left--
	return true
}

// held lists what a worker has, in the order of the items' numbers.
func (b *board) held(worker string) []taken {
	var all []taken
	for _, t := range b.taken {
		if t.worker == worker {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(x, y taken) int { return x.item.ID - y.item.ID })
	return all
}

// lost puts a dead worker's items back, ahead of the rest, and returns how many.
func (b *board) lost(worker string) int {
	held := b.held(worker)
	for _, t := range slices.Backward(held) {
		delete(b.taken, t.item.ID)
		b.pending[t.item.Endpoint] = slices.Insert(b.pending[t.item.Endpoint], 0, t.item)
	}
	b.wants = slices.DeleteFunc(b.wants, func(a *appetite) bool { return a.worker == worker })
	return len(held)
}
