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
		"admit.lua": admit, "settle.lua": settle, "renew.lua": renew, "inspect.lua": inspect,
	} {
		comment := blockComment(t, name, source)
		for _, part := range []string{"\nKEYS  ", "\nARGV  1 ", "\nReply: "} {
			if !strings.Contains(comment, part) {
				t.Errorf("the block comment of %s has no part %q", name, strings.TrimSpace(part))
			}
		}
	}

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

	comment = blockComment(t, "settle.lua", settle)
	operations := regexp.MustCompile(`op == '(\w+)'`).FindAllStringSubmatch(settle, -1)
	if len(operations) < 8 {
		t.Fatalf("%d operations found in settle.lua", len(operations))
	}
	for _, operation := range operations {
		if !strings.Contains(comment, "\n      "+operation[1]+" ") {
			t.Errorf("the block comment of settle.lua does not explain the operation %s", operation[1])
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
