package fleetsim

import (
	"flag"
	"os"
	"testing"
)

// TestMain makes the random scenarios few and the same each time. Flags of rapid ask
// for more, or for others.
func TestMain(m *testing.M) {
	defaults := map[string]string{"rapid.checks": "5", "rapid.seed": "1", "rapid.nofailfile": "true"}
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { delete(defaults, f.Name) })
	for name, value := range defaults {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
