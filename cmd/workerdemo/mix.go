package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A mix says how many of the requests go to which endpoint.
type mix []share

type share struct {
	endpoint string // "METHOD /path"
	weight   int
}

const defaultMix = "POST /responses=6,POST /mave/chat=3,POST /video-analyses=1"

// maxWeight keeps requests × weight far from overflow.
const maxWeight = 1_000_000

// parseMix reads "METHOD /path=WEIGHT,…". Weights are whole numbers; an endpoint
// of weight 0 gets no requests.
func parseMix(s string) (mix, error) {
	var m mix
	sum := 0
	for part := range strings.SplitSeq(s, ",") {
		endpoint, weight, ok := strings.Cut(strings.TrimSpace(part), "=")
		endpoint = strings.Join(strings.Fields(endpoint), " ")
		method, path, _ := strings.Cut(endpoint, " ")
		switch {
		case !ok:
			return nil, fmt.Errorf("%q has no weight: want METHOD /path=WEIGHT", part)
		case method == "" || strings.ToUpper(method) != method || strings.ContainsFunc(method, notLetter):
			return nil, fmt.Errorf("%q has no method in capitals: want METHOD /path=WEIGHT", part)
		case !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " {}?#%"):
			return nil, fmt.Errorf("%q has no plain path: want METHOD /path=WEIGHT", part)
		case slices.ContainsFunc(m, func(s share) bool { return s.endpoint == endpoint }):
			return nil, fmt.Errorf("%q comes twice", endpoint)
		}
		n, err := strconv.Atoi(strings.TrimSpace(weight))
		if err != nil || n < 0 || n > maxWeight {
			return nil, fmt.Errorf("%q: the weight must be a whole number between 0 and %d", part, maxWeight)
		}
		sum += n
		m = append(m, share{endpoint, n})
	}
	if sum == 0 {
		return nil, fmt.Errorf("no endpoint has a weight above 0")
	}
	return m, nil
}

func notLetter(r rune) bool { return r < 'A' || r > 'Z' }

// A portion is a number of requests to one endpoint.
type portion struct {
	endpoint string
	requests int
}

// split divides n requests by weight (largest remainder), and leaves out the
// endpoints that get none.
func (m mix) split(n int) []portion {
	sum := 0
	for _, s := range m {
		sum += s.weight
	}
	portions := make([]portion, len(m))
	remainders := make([]int, len(m))
	order := make([]int, len(m))
	left := n
	for i, s := range m {
		portions[i] = portion{s.endpoint, n * s.weight / sum}
		remainders[i] = n * s.weight % sum
		order[i] = i
		left -= portions[i].requests
	}
	slices.SortStableFunc(order, func(a, b int) int { return remainders[b] - remainders[a] })
	for _, i := range order[:left] {
		portions[i].requests++
	}
	return slices.DeleteFunc(portions, func(p portion) bool { return p.requests == 0 })
}
