package metrics_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exist are the names of all time series that the metrics make.
func exist(t *testing.T) (families, series []string) {
	inVirtualTime(t, func(r *rig) {
		trouble(r)
		gathered, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range gathered {
			families = append(families, f.GetName())
			series = append(series, f.GetName())
			if f.GetType().String() == "HISTOGRAM" {
				series = append(series, f.GetName()+"_bucket", f.GetName()+"_sum", f.GetName()+"_count")
			}
		}
	})
	return families, series
}

var aName = regexp.MustCompile(`\bfleetlimit_[a-z0-9_]+`)

func TestEachMetricInRulesDashboardAndDocsExists(t *testing.T) {
	families, series := exist(t)
	for path, most := range map[string]int{
		"../deploy/prometheus/rules.yml": 8, "../deploy/prometheus/rules_test.yml": 8,
		"../deploy/grafana/fleetlimit.json": 20, "../docs/operations.md": 20,
	} {
		names := aName.FindAllString(read(t, path), -1)
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) < most {
			t.Errorf("%s names only %d metrics", path, len(names))
		}
		for _, name := range names {
			if !slices.Contains(series, name) {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
	}
	docs := read(t, "../docs/operations.md")
	for _, name := range families {
		if !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("docs/operations.md does not list %s", name)
		}
	}
}

func TestTheFiveOfTheCookbookAreFound(t *testing.T) {
	rules, docs := read(t, "../deploy/prometheus/rules.yml"), read(t, "../docs/operations.md")
	for _, name := range []string{"rate_limit_remaining", "rate_limit_reset", "requests_per_minute", "429_count", "retry_count"} {
		if !strings.Contains(rules, "record: fleetlimit:"+name+"\n") {
			t.Errorf("no rule records fleetlimit:%s", name)
		}
		if !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("docs/operations.md does not say where %s is", name)
		}
	}
}

var anAlert = regexp.MustCompile(`(?m)^      - alert: (\w+)$`)

func TestEachAlertIsTestedAndSaysWhatToDo(t *testing.T) {
	rules, tests, docs := read(t, "../deploy/prometheus/rules.yml"), read(t, "../deploy/prometheus/rules_test.yml"), read(t, "../docs/operations.md")
	alerts := anAlert.FindAllStringSubmatch(rules, -1)
	if len(alerts) < 7 {
		t.Errorf("only %d alerts", len(alerts))
	}
	for _, a := range alerts {
		if !strings.Contains(tests, a[1]) {
			t.Errorf("no test of %s", a[1])
		}
		if !strings.Contains(docs, "### "+a[1]+"\n") {
			t.Errorf("docs/operations.md has no section %s", a[1])
		}
		if !strings.Contains(rules, "operations.md#"+strings.ToLower(a[1])+"\n") {
			t.Errorf("%s has no link to its section", a[1])
		}
	}
}

func TestTheDashboardIsWhole(t *testing.T) {
	var d struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "../deploy/grafana/fleetlimit.json")), &d); err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for _, p := range d.Panels {
		if seen[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q: its id occurs twice, or it has no title, or nothing to show", p.ID, p.Title)
		}
		seen[p.ID] = true
	}
}

func TestComposeUsesTheACLOfDeployWithAPassword(t *testing.T) {
	const password = "fleetlimit-demo"
	hash := sha256.Sum256([]byte(password))
	want := strings.Replace(read(t, "../deploy/redis/users.acl"), " resetpass ", " #"+hex.EncodeToString(hash[:])+" ", 1)
	if got := read(t, "../deploy/compose/users.acl"); got != want {
		t.Errorf("deploy/compose/users.acl is not deploy/redis/users.acl with the password:\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(read(t, "../docker-compose.yml"), "${REDIS_PASSWORD:-"+password+"}") {
		t.Errorf("docker-compose.yml has another password than %s", password)
	}
}
