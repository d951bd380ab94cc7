package lua

import (
	"regexp"
	"strings"
	"testing"
)

// The block comment at the head of a script is the only description of its
// interface: it must name all of it.
func TestScriptsAreDocumented(t *testing.T) {
	for name, source := range map[string]string{
		"exchange.lua": exchange, "renew.lua": renew, "control.lua": control, "inspect.lua": inspect,
	} {
		comment := blockComment(t, name, source)
		for _, part := range []string{"\nKEYS  ", "\nARGV  1 ", "\nReply: "} {
			if !strings.Contains(comment, part) {
				t.Errorf("the block comment of %s has no part %q", name, strings.TrimSpace(part))
			}
		}
	}

	blockComment(t, "policy.lua", policy)
	blockComment(t, "settle.lua", settle)
	blockComment(t, "admit.lua", admit)
	blockComment(t, "guard.lua", guard)
	comment := blockComment(t, "account.lua", account)
	fields := regexp.MustCompile(`(?s)local FIELDS = \{(.*?)\}`).FindStringSubmatch(account)
	if fields == nil {
		t.Fatal("account.lua has no list of fields")
	}
	for _, field := range quoted(fields[1]) {
		if !regexp.MustCompile(`\b` + field + `\b`).MatchString(comment) {
			t.Errorf("the block comment of account.lua does not explain the field %s", field)
		}
	}

	comment = blockComment(t, "exchange.lua", exchange)
	operations := regexp.MustCompile(`op == '(\w+)'`).FindAllStringSubmatch(exchange, -1)
	if len(operations) < 8 {
		t.Fatalf("%d operations found in exchange.lua", len(operations))
	}
	for _, operation := range operations {
		if !strings.Contains(comment, "\n      "+operation[1]+" ") {
			t.Errorf("the block comment of exchange.lua does not explain the operation %s", operation[1])
		}
	}
}

// inspect.lua stands alone, for redis-cli. Its arithmetic must be admission's: after
// a change there, copy the passage.
func TestInspectReckonsAsAdmissionDoes(t *testing.T) {
	passage := account[strings.Index(account, "-- usable is the limit in force"):strings.Index(account, "local function set_credit")]
	texts := []string{passage}
	for _, name := range []string{"DOUBT", "LAST_DOUBT", "MEMORY", "CATCH_UP", "COARSE", "TIGHT_BURST"} {
		texts = append(texts, regexp.MustCompile(`local `+name+` = \S+`).FindString(account))
	}
	for _, text := range texts {
		if len(text) == 0 || !strings.Contains(inspect, text) {
			t.Errorf("account.lua has, and inspect.lua has not:\n%s", text)
		}
	}
}

func blockComment(t *testing.T, name, source string) string {
	t.Helper()
	head, _, ok := strings.Cut(source, "--]]\n")
	if !ok || !strings.HasPrefix(head, "--[[\n"+name+": ") {
		t.Fatalf("%s does not begin with a block comment that says what it is", name)
	}
	return head
}

func quoted(list string) (names []string) {
	for _, match := range regexp.MustCompile(`'(\w+)'`).FindAllStringSubmatch(list, -1) {
		names = append(names, match[1])
	}
	return names
}
