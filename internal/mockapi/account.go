package mockapi

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"time"
)

// keyHash stands for an API key; the key itself is never kept.
type keyHash [sha256.Size]byte

func hashKey(key string) keyHash { return sha256.Sum256([]byte(key)) }

// bearer returns the hash of the request's API key, if it has one.
func bearer(r *http.Request) (keyHash, bool) {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return keyHash{}, false
	}
	return hashKey(key), true
}

// account is the state behind one API key. API.mu guards it.
type account struct {
	window window
	slots  [endpoints]slotSet

	pause          pause            // of the whole key
	endpointPauses [endpoints]pause // by 429s that cannot be the budget's
	unavailable    [endpoints]pause // by 503s with Retry-After

	// told is the limit that the fleet has seen last, since toldAt; before,
	// it knew toldBefore.
	told, toldBefore int
	toldAt           instant

	maxInWindow int
}

func (a *API) newAccount() *account {
	acct := &account{
		window:     window{mode: a.cfg.Mode, length: a.cfg.Window, phase: a.cfg.Phase},
		told:       a.limit,
		toldBefore: a.limit,
	}
	for e := range endpoints {
		acct.slots[e] = newSlotSet(a.slots[e], e == videoAnalyses)
	}
	return acct
}

// account returns the account of a key. The first key that is seen gets the
// account that strangers without a key of their own have used since New. a.mu
// is held.
func (a *API) account(key keyHash, now instant) *account {
	acct, ok := a.accounts[key]
	switch {
	case ok:
	case !a.primaryKnown:
		acct, a.primaryKnown = a.primary, true
		a.accounts[key] = acct
	default:
		before := a.capacity()
		if len(a.accounts) >= manyAccounts {
			a.forgetIdle(now)
		}
		acct = a.newAccount()
		a.accounts[key] = acct
		a.timeline.change(now, before, a.capacity())
	}
	acct.window.advance(now)
	return acct
}

// accountOf is account for a stranger's key, where "" means the first seen.
func (a *API) accountOf(key string, now instant) *account {
	if key != "" {
		return a.account(hashKey(key), now)
	}
	a.primary.window.advance(now)
	return a.primary
}

// manyAccounts is the number of keys from which idle ones are forgotten, so
// that a client that sends a new key each time does not fill the memory.
const manyAccounts = 1000

func (a *API) forgetIdle(now instant) {
	for key, acct := range a.accounts {
		if acct != a.primary && acct.idle(now) {
			a.gone.add(acct)
			delete(a.accounts, key)
		}
	}
}

// eachAccount calls f for every account, brought up to now.
func (a *API) eachAccount(now instant, f func(*account)) {
	a.primary.advance(now)
	f(a.primary)
	for _, acct := range a.accounts {
		if acct != a.primary {
			acct.advance(now)
			f(acct)
		}
	}
}

func (acct *account) advance(now instant) {
	acct.window.advance(now)
	for e := range acct.slots {
		acct.slots[e].expire(now)
	}
}

func (acct *account) idle(now instant) bool {
	acct.advance(now)
	for e := range acct.slots {
		if !acct.slots[e].empty() {
			return false
		}
	}
	return acct.window.used() == 0 && acct.window.log.len() == 0 && now >= acct.pause.until
}

// announce notes that an answer has shown the limit to the fleet.
func (acct *account) announce(now instant, limit int, grace time.Duration) {
	if limit != acct.told {
		acct.toldBefore = acct.known(now, grace)
		acct.told, acct.toldAt = limit, now
	}
}

// known is the highest limit that the fleet may believe in.
func (acct *account) known(now instant, grace time.Duration) int {
	if now > acct.toldAt+grace {
		return acct.told
	}
	return max(acct.told, acct.toldBefore)
}

// peaks are the maxima over single keys.
type peaks struct {
	inWindow int
	inFlight [endpoints]int
}

func (p *peaks) add(acct *account) {
	p.inWindow = max(p.inWindow, acct.maxInWindow)
	for e := range acct.slots {
		p.inFlight[e] = max(p.inFlight[e], acct.slots[e].most)
	}
}
