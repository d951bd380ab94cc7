package page

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A tab is a real browser with the page open. What its console complains about
// fails the test.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
}

func openBrowser(t *testing.T) *tab {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no chromium and no Chrome on the PATH: `make test` installs one, or says how")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WSURLReadTimeout(time.Minute))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // as root there is none
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(e any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			b.complaints = append(b.complaints, e.ExceptionDetails.Error())
		case *cdplog.EventEntryAdded:
			if e.Entry.Level == cdplog.LevelError {
				b.complaints = append(b.complaints, e.Entry.Text+" "+e.Entry.URL)
			}
		}
	})
	b.run(cdplog.Enable())
	return b
}

func (b *tab) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("browser: %v; its console: %q", err, b.complaints)
	}
}

// await waits until an expression is true.
func (b *tab) await(expression string) {
	b.t.Helper()
	b.run(chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(time.Minute), chromedp.WithPollingInterval(50*time.Millisecond)))
}

func (b *tab) eval(expression string, to any) {
	b.t.Helper()
	b.run(chromedp.Evaluate(expression, to))
}

func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.complaints) > 0 {
		b.t.Errorf("the browser's console: %q", b.complaints)
	}
}

const says = `(id, text) => document.getElementById(id).innerText.includes(text)`

func sees(id, text string) string { return fmt.Sprintf("(%s)(%q, %q)", says, id, text) }

func TestThePageInABrowser(t *testing.T) {
	s := newStage(t, Options{})
	b := openBrowser(t)
	w1, w2 := s.worker(t, "acme", "w1"), s.worker(t, "acme", "w2")
	first := s.acquire(t, w1)
	s.acquire(t, w1)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if p, err := w2.Acquire(t.Context(), coordinator.Request{Endpoint: chat}); err == nil {
			p.Release()
		}
	}()
	s.acquire(t, s.worker(t, "other", "w3"))
	// Ten minutes that the heartbeats would have written down.
	now := time.Now()
	s.mini.Del("fleetlimit:{acme}:timeline")
	for i := range 120 {
		rejected, paused := 0, 0
		if i > 60 {
			rejected = 2
		}
		if i > 60 && i < 66 {
			paused = 1
		}
		s.mini.RPush("fleetlimit:{acme}:timeline", fmt.Sprintf("%d %d %d %d %d %d",
			now.Add(time.Duration(i-120)*5*time.Second).UnixMilli(), 1000+20*i-paused, rejected, i/4, 3+i%5, paused))
	}

	b.run(emulation.SetDeviceMetricsOverride(1200, 900, 1, false), chromedp.Navigate(s.url))
	b.await(sees("leases", "w1"))
	b.await(sees("places", "w2"))
	b.await(sees("semaphores", "2 of 2, 1 waiting"))
	b.await(sees("link", "live"))
	b.await(`document.querySelectorAll("#chart .admitted").length > 100 && document.querySelectorAll("#chart .rejected").length === 1`)
	b.await(`document.querySelector("#chart .foreign-line") !== null && document.querySelector("#chart .paused") !== null`)
	b.await(sees("chart-text", "2 429s"))

	// A pause, with its cause, and its end.
	o, err := coordinator.NewOperator(s.rdb, "ada")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Pause(t.Context(), "acme", time.Hour, "<b>repairs</b>"); err != nil {
		t.Fatal(err)
	}
	b.await(sees("pause", "<b>repairs</b>"))
	b.await(`document.getElementById("verdict").dataset.tone === "bad"`)
	b.await(`document.getElementById("spoken").textContent.includes("paused")`)
	if _, err := o.Resume(t.Context(), "acme", false); err != nil {
		t.Fatal(err)
	}
	b.await(`document.getElementById("pause").hidden`)

	// A slot that comes free goes to who waits, and the page follows.
	first.Release()
	<-served
	b.await(sees("places", "nobody waits"))

	// The other account, by keyboard: the first Tab is the way past the header.
	b.run(chromedp.KeyEvent(kb.Tab))
	var focused string
	b.eval(`document.activeElement.textContent`, &focused)
	if focused != "Skip to the account" {
		t.Errorf("the first Tab leads to %q", focused)
	}
	b.run(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	b.await(sees("name", "other"))
	b.await(sees("leases", "w3"))
	b.await(`document.querySelector("#accounts [aria-current]").innerText.includes("other")`)

	// A Redis that cannot be read, and can again.
	s.mini.SetError("ERR it is broken")
	b.await(`!document.getElementById("trouble").hidden`)
	s.mini.SetError("")
	b.await(`document.getElementById("trouble").hidden`)
	b.quiet()
}

// Names on the page are what a screen reader lists.
func TestThePageIsReadAloud(t *testing.T) {
	s := newStage(t, Options{})
	b := openBrowser(t)
	s.acquire(t, s.worker(t, "acme", "w1"))
	b.run(chromedp.Navigate(s.url))
	b.await(sees("leases", "w1"))
	for what, expression := range map[string]string{
		"a language":                         `document.documentElement.lang === "en"`,
		"one main landmark and one header":   `document.querySelectorAll("main").length === 1 && document.querySelectorAll("header").length === 1`,
		"a named heading in every section":   `[...document.querySelectorAll("section")].every(s => s.ariaLabel || document.getElementById(s.getAttribute("aria-labelledby")).textContent)`,
		"headers with a scope in all tables": `[...document.querySelectorAll("th")].every(c => c.scope)`,
		"a name for each table":              `[...document.querySelectorAll("table")].every(t => t.caption || t.closest("[aria-label]"))`,
		"names for the pictures":             `[...document.querySelectorAll("[role=img]")].every(n => n.ariaLabel || document.getElementById(n.getAttribute("aria-labelledby")).textContent)`,
		"two live regions, not more":         `document.querySelectorAll("[role=status],[role=alert],[aria-live]").length === 2`,
	} {
		var ok bool
		if b.eval(expression, &ok); !ok {
			t.Errorf("the page has not: %s", what)
		}
	}
	b.quiet()
}

// contrast is the lowest contrast of any text to what is behind it (WCAG 2).
const contrast = `(() => {
  const rgb = (c) => c.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  let worst = 99, where = "";
  for (const n of document.querySelectorAll("#content *, header *, nav *, footer *")) {
    if (![...n.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()) || n.closest("svg,[hidden],.unseen") || !n.checkVisibility()) continue;
    let p = n, behind = [0, 0, 0, 0];
    while (p && (behind = rgb(getComputedStyle(p).backgroundColor)).length === 4 && behind[3] === 0) p = p.parentElement;
    const a = light(rgb(getComputedStyle(n).color)), b = light(behind);
    const c = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (c < worst) { worst = c; where = n.outerHTML.slice(0, 80); }
  }
  return {worst, where};
})()`

func TestThePageFitsPhonesAndBothSchemes(t *testing.T) {
	s := newStage(t, Options{})
	b := openBrowser(t)
	long := s.worker(t, "acme", "a-host-with-quite-a-long-name.in-some-zone.example.com-12345-abcdef")
	s.acquire(t, long)
	s.acquire(t, long)
	for _, view := range []struct {
		name, scheme  string
		width, height int64
	}{{"desk-light", "light", 1200, 900}, {"desk-dark", "dark", 1200, 900}, {"phone-light", "light", 360, 740}, {"phone-dark", "dark", 360, 740}} {
		b.run(
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.scheme}}),
			emulation.SetDeviceMetricsOverride(view.width, view.height, 1, view.width < 500),
			chromedp.Navigate(s.url),
		)
		b.await(sees("leases", "a-host"))
		var width int64
		if b.eval(`document.documentElement.scrollWidth`, &width); width > view.width {
			t.Errorf("%s: the page is %d wide", view.name, width)
		}
		var c struct {
			Worst float64 `json:"worst"`
			Where string  `json:"where"`
		}
		if b.eval(contrast, &c); c.Worst < 4.5 {
			t.Errorf("%s: a contrast of %.2f: %s", view.name, c.Worst, c.Where)
		}
		var picture []byte
		b.run(chromedp.FullScreenshot(&picture, 100))
		// go test -artifacts keeps them.
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), view.name+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(strings.Join(b.complaints, " "), "Content Security Policy") {
		t.Errorf("the page breaks its own policy: %q", b.complaints)
	}
	b.quiet()
}
