//go:build !race

// Package race tells tests that play hours of virtual time whether the race detector
// runs. With it they play a part; `make test` plays the whole without it.
package race

// Enabled tells that the race detector does not run.
const Enabled = false
