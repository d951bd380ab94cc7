//go:build race

package race

// Enabled tells that the race detector runs, and with it everything ten times as slow.
const Enabled = true
