// The live page: takes what the server streams and puts it on the screen. Every text
// goes through textContent, so that nothing from Redis is ever markup.
"use strict";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["rect", "line", "path", "circle", "text", "title", "g"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// put changes a text only if it differs, so that selections and screen readers rest.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show(node, visible) { node.hidden = !visible; }

function time(ms) {
  if (ms < 0) return "–";
  if (ms < 1000) return ms + " ms";
  const s = ms / 1000;
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 60) return Math.round(s) + " s";
  const m = Math.floor(s / 60), rest = Math.round(s % 60);
  if (m < 60) return m + " min" + (rest ? " " + rest + " s" : "");
  return Math.floor(m / 60) + " h " + (m % 60) + " min";
}

// rows brings a table body in line with a list; each row is a list of cells, a text
// or {text, tag, n}. The first cell heads its row.
function rows(body, list, none) {
  const columns = body.closest("table").tHead.rows[0].cells;
  if (list.length === 0) list = [[none]];
  while (body.rows.length > list.length) body.deleteRow(-1);
  list.forEach((cells, r) => {
    const row = body.rows[r] || body.insertRow();
    row.className = cells.length === 1 ? "none" : "";
    const wanted = cells.length === 1 ? ["TD"] : cells.map((_, c) => (c === 0 ? "TH" : "TD"));
    if (row.cells.length !== wanted.length || row.cells[0].tagName !== wanted[0]) {
      row.replaceChildren(...wanted.map((tag) => make(tag.toLowerCase(), tag === "TH" ? { scope: "row" } : {})));
    }
    cells.forEach((cell, c) => {
      const node = row.cells[c];
      if (cells.length === 1) node.colSpan = columns.length;
      else node.removeAttribute("colspan");
      if (cells.length > 1) node.className = columns[c].className;
      if (typeof cell === "object") {
        let tag = node.firstElementChild;
        if (!tag) { node.replaceChildren(); tag = node.appendChild(make("span")); }
        tag.className = "tag " + (cell.tag || "");
        put(tag, cell.text);
      } else {
        put(node, cell);
      }
    });
  });
}

function plural(n, one, many) { return n + " " + (n === 1 ? one : many || one + "s"); }

// tone is what kind of news this is; its change is spoken.
function tone(a) {
  if (a.hold || a.backoff) return ["bad", "paused"];
  if (a.alive === 0) return ["bad", "no worker is alive"];
  if (a.known && a.window.room < 1) return ["busy", "the window is full"];
  const waiting = a.queued > 0 || a.endpoints.some((e) => e.waiting > 0);
  return waiting ? ["busy", "in use, some wait"] : ["good", "open, nobody waits"];
}

let spoken = "";

function showAccount(a) {
  show(at("empty"), !a);
  show(at("content"), !!a);
  if (!a) return;
  put(at("name"), a.account);
  document.title = a.account + " · Fleetlimit";
  const [kind, words] = tone(a);
  at("verdict").dataset.tone = kind;
  if (words !== spoken) { spoken = words; put(at("spoken"), "Account " + a.account + ": " + words); }
  put(at("summary"), a.diagnosis.summary);
  const pauses = [a.hold, a.backoff].filter(Boolean);
  show(at("pause"), pauses.length > 0);
  put(at("pause"), pauses.map((p) => (p === a.hold ? "Operator " : "Seen by ") + (p.by || "somebody") + ", " + time(p.since_ms) + " ago: " + p.reason + ". " + time(p.left_ms) + " left.").join(" "));
  const notes = at("notes");
  show(notes, a.diagnosis.notes.length > 0);
  while (notes.children.length > a.diagnosis.notes.length) notes.lastChild.remove();
  a.diagnosis.notes.forEach((text, i) => put(notes.children[i] || notes.appendChild(make("li")), text));

  showWindow(a);
  showSlots(a);
  showPlaces(a);
  const kinds = a.diagnosis.kinds;
  rows(at("gates"), kinds.map((k) => [
    k.endpoint || "any (budget alone)",
    k.gate ? { text: k.gate, tag: k.gate === "turn" || k.gate === "pace" ? "" : "shut" } : { text: "open", tag: "open" },
    k.gate ? k.reason + (k.advice && !k.advice.startsWith("nothing") ? ". Do: " + k.advice + "." : "") : "all gates are open",
  ]), "no requests yet");
  showWorkers(a);
}

function showWindow(a) {
  const w = a.window, meter = at("meter");
  const share = (n) => (w.limit > 0 ? Math.min(100, (100 * n) / w.limit) : 0) + "%";
  [w.used, w.foreign, w.reserve].forEach((n, i) => { meter.children[i].style.width = share(n); });
  let text = a.known ? w.used + " of " + w.limit + " requests in " + time(w.length_ms) : "no worker has told its policy yet";
  if (w.foreign > 0) text += ", strangers " + w.foreign;
  if (w.reserve > 0) text += ", " + w.reserve + " kept free for them";
  if (a.known) text += w.room > 0 ? "; room for " + w.room : "; full, room in " + time(w.wait_ms);
  meter.setAttribute("aria-label", text);
  put(at("window-text"), text);
  const waiting = names(a).size;
  tiles([
    ["limit in force", String(w.limit), w.reported_limit > 0 && w.reported_limit < w.policy_limit ? "odd" : ""],
    ["API reports", w.reported_limit > 0 ? String(w.reported_limit) : "–", ""],
    ["429s", String(a.rejected), a.rejected > 0 ? "bad" : ""],
    ["strangers", String(w.foreign), w.foreign > 0 ? "odd" : ""],
    ["workers waiting", String(waiting), ""],
    ["one request every", time(Math.round(a.pace.interval_ms)), ""],
  ]);
}

function tiles(list) {
  const dl = at("tiles");
  list.forEach(([name, value, mood], i) => {
    const tile = dl.children[i] || dl.appendChild(make("div", {}, make("dt"), make("dd")));
    tile.className = mood;
    put(tile.children[0], name);
    put(tile.children[1], value);
  });
}

// names are the workers that wait.
function names(a) {
  const set = new Set(a.waiting.map((p) => p.worker));
  for (const e of a.endpoints) for (const p of e.queue) set.add(p.worker);
  return set;
}

function showSlots(a) {
  show(at("slots"), a.endpoints.length > 0);
  const box = at("semaphores");
  while (box.children.length > a.endpoints.length) box.lastChild.remove();
  a.endpoints.forEach((e, i) => {
    const node = box.children[i] || box.appendChild(make("div", { class: "semaphore" },
      make("div", { class: "top" }, make("span"), make("span")), make("div", { class: "places", "aria-hidden": "true" })));
    node.classList.toggle("paused", !!e.backoff);
    put(node.children[0].children[0], e.endpoint);
    let text = e.in_use + " of " + e.slots + (e.waiting > 0 ? ", " + e.waiting + " waiting" : "");
    if (e.backoff) text += ", paused " + time(e.backoff.left_ms) + " (" + e.backoff.reason + ")";
    put(node.children[0].children[1], text);
    const most = Math.min(e.slots, 50), cells = node.children[1];
    while (cells.children.length > most) cells.lastChild.remove();
    while (cells.children.length < most) cells.appendChild(make("span"));
    const taken = e.slots > 0 ? Math.round((e.in_use * most) / e.slots) : 0;
    for (let c = 0; c < most; c++) cells.children[c].className = c < taken ? "taken" : "";
  });
  rows(at("leases"), a.endpoints.flatMap((e) => e.leases.map((l) => [e.endpoint, l.worker, time(l.held_ms), time(l.left_ms), l.job || "–"])), "no slot is held");
}

function showPlaces(a) {
  const seen = new Set(), list = [];
  for (const p of [...a.waiting, ...a.endpoints.flatMap((e) => e.queue)]) {
    const key = p.worker + " " + p.endpoint;
    if (seen.has(key)) continue;
    seen.add(key);
    list.push([p.worker, p.endpoint || "(budget alone)", time(p.waited_ms), { text: p.gate || "–", tag: p.gate === "backoff" ? "shut" : "" }]);
  }
  put(at("waiting-count"), list.length ? "· " + list.length : "");
  rows(at("places"), list.slice(0, 100), "nobody waits");
}

function showWorkers(a) {
  const count = (list) => list.reduce((m, x) => m.set(x.worker, (m.get(x.worker) || 0) + 1), new Map());
  const held = count(a.endpoints.flatMap((e) => e.leases));
  const waits = count([...a.waiting.filter((p) => !p.endpoint), ...a.endpoints.flatMap((e) => e.queue)]);
  const drained = new Map(a.drained.map((d) => [d.worker, d]));
  const list = a.workers.map((w) => {
    const d = drained.get(w.worker);
    drained.delete(w.worker);
    return [w.worker, String(held.get(w.worker) || 0), String(waits.get(w.worker) || 0), time(w.left_ms),
      d ? { text: "drained by " + d.by + ": " + d.reason + ", " + time(d.left_ms) + " left", tag: "shut" } : { text: "alive", tag: "open" }];
  });
  const alive = new Set(a.workers.map((w) => w.worker));
  for (const [name, n] of held) {
    if (!alive.has(name) && a.alive <= a.workers.length) list.push([name, String(n), "0", "–", { text: "gone; its slots end by themselves", tag: "shut" }]);
  }
  put(at("worker-count"), "· " + plural(a.alive, "alive", "alive"));
  rows(at("workers"), list, "no worker is alive");
}

// The timeline. Its width stands for ten minutes.
const SPAN = 600000, LEFT = 34, RIGHT = 30, TOP = 18, BOTTOM = 168;
let limit = 0, last = [];

function showTimeline(points) {
  last = points;
  points = points.filter((p) => p.ago_ms < SPAN);
  const chart = at("chart"), WIDTH = Math.max(300, Math.round(chart.clientWidth) || 600);
  chart.setAttribute("viewBox", "0 0 " + WIDTH + " 190");
  const rate = (p) => (p.admitted * 60000) / Math.max(1, p.length_ms);
  // A burst after idle time would make all else small: it is cut, and says how high it is.
  const usual = limit > 0 ? limit * 1.5 : Infinity;
  const highest = Math.max(10, limit, ...points.map((p) => Math.min(usual, rate(p))), ...points.map((p) => Math.min(usual, p.foreign))) * 1.05;
  const most = Math.max(4, ...points.map((p) => p.waiting));
  const x = (ago) => LEFT + (WIDTH - LEFT - RIGHT) * (1 - Math.min(SPAN, ago) / SPAN);
  const y = (n) => BOTTOM - (BOTTOM - TOP) * Math.min(1, n / highest);
  const yw = (n) => BOTTOM - (BOTTOM - TOP) * (n / (most * 1.05));
  const nodes = [];
  for (const m of WIDTH < 420 ? [10, 5, 0] : [10, 8, 6, 4, 2, 0]) {
    nodes.push(make("text", { x: x(m * 60000), y: 185, "text-anchor": m === 10 ? "start" : m === 0 ? "end" : "middle" }, m === 0 ? "now" : "−" + m + " min"));
  }
  for (const part of [0.5, 1]) {
    const n = nice(highest * part / 1.05);
    if (n > 0) nodes.push(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(n), y2: y(n) }), make("text", { x: LEFT - 5, y: y(n) + 4, "text-anchor": "end" }, String(n)));
  }
  nodes.push(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: BOTTOM, y2: BOTTOM }));
  nodes.push(make("text", { x: WIDTH - RIGHT + 5, y: yw(most) + 4, fill: "currentColor" }, String(most)));
  for (const p of points) if (p.paused) nodes.push(make("rect", { class: "paused", x: x(p.ago_ms + p.length_ms), width: Math.max(1, x(p.ago_ms) - x(p.ago_ms + p.length_ms)), y: TOP, height: BOTTOM - TOP }));
  for (const p of points) {
    const left = x(p.ago_ms + p.length_ms), right = x(p.ago_ms), top = y(rate(p));
    if (right - left > 0.2) nodes.push(make("rect", { class: "admitted", x: left + 0.25, width: Math.max(0.5, right - left - 0.5), y: top, height: BOTTOM - top }));
    if (rate(p) > highest) nodes.push(make("text", { x: (left + right) / 2, y: TOP - 5, "text-anchor": "middle" }, "↑" + Math.round(rate(p))));
  }
  if (limit > 0) nodes.push(make("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit), y2: y(limit) }));
  const path = (f) => points.map((p, i) => (i ? "L" : "M") + x(p.ago_ms).toFixed(1) + " " + f(p).toFixed(1)).join("");
  if (points.some((p) => p.foreign > 0)) nodes.push(make("path", { class: "foreign-line", d: path((p) => y(p.foreign)) }));
  if (points.length > 1) nodes.push(make("path", { class: "waiting-line", d: path((p) => yw(p.waiting)) }));
  for (const p of points) {
    if (p.rejected > 0) nodes.push(make("circle", { class: "rejected", cx: (x(p.ago_ms) + x(p.ago_ms + p.length_ms)) / 2, cy: TOP + 5, r: Math.min(6, 3 + p.rejected / 4) }, make("title", {}, plural(p.rejected, "429"))));
  }
  chart.replaceChildren(...nodes);

  const minutes = [];
  for (let m = 0; m < 10; m++) {
    const part = points.filter((p) => p.ago_ms >= m * 60000 && p.ago_ms < (m + 1) * 60000);
    if (part.length === 0) continue;
    const sum = (f) => part.reduce((n, p) => n + f(p), 0), top = (f) => Math.max(...part.map(f));
    minutes.push([String(m), String(sum((p) => p.admitted)), String(sum((p) => p.rejected)), String(top((p) => p.foreign)), String(top((p) => p.waiting)), part.some((p) => p.paused) ? "yes" : "no"]);
  }
  rows(at("minutes"), minutes, "nothing yet");
  const total = points.reduce((n, p) => n + p.admitted, 0), refused = points.reduce((n, p) => n + p.rejected, 0);
  put(at("chart-text"), total + " requests admitted in the last ten minutes, " + plural(refused, "429") + ", at most " + Math.max(0, ...points.map((p) => p.waiting)) + " waiting, at most " + Math.max(0, ...points.map((p) => p.foreign)) + " requests of strangers in a window.");
}

// nice rounds down to something that people count by.
function nice(n) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, n)));
  for (const step of [5, 4, 3, 2.5, 2, 1.5, 1.2, 1]) if (step * power <= n) return Math.round(step * power);
  return Math.round(n);
}

// Accounts: links, so that the browser's history and the keyboard just work.
const chosen = () => { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } };

function showAccounts(list) {
  const nav = at("accounts");
  show(nav, list.length > 1);
  const current = chosen() || (list[0] || {}).account;
  while (nav.children.length > list.length) nav.lastChild.remove();
  list.forEach((a, i) => {
    const link = nav.children[i] || nav.appendChild(make("a", {}, make("span"), make("small")));
    link.setAttribute("href", "#" + encodeURIComponent(a.account));
    link.classList.toggle("paused", a.paused);
    if (a.account === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    put(link.children[0], a.account);
    put(link.children[1], a.paused ? "paused" : a.used + "/" + a.limit);
  });
  if (list.length === 0) showAccount(null);
}

function link(state, text) {
  at("link").dataset.state = state;
  put(at("link-text"), text);
}

let source = null;

function connect() {
  if (source) source.close();
  const account = chosen();
  spoken = "";
  source = new EventSource("events" + (account ? "?account=" + encodeURIComponent(account) : ""));
  source.onopen = () => link("live", "live");
  source.onerror = () => link("lost", "connection lost, trying again");
  const on = (kind, f) => source.addEventListener(kind, (e) => f(JSON.parse(e.data)));
  on("account", (a) => { limit = a && a.known ? a.window.limit : 0; showAccount(a); });
  on("accounts", showAccounts);
  on("timeline", showTimeline);
  on("trouble", (t) => {
    show(at("trouble"), t.text !== "");
    put(at("trouble"), t.text ? "Redis cannot be read, so what stands here is old: " + t.text : "");
  });
}

// A page that nobody looks at asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { if (source) source.close(); source = null; link("begin", "asleep"); } else if (!source) connect();
});
window.addEventListener("hashchange", connect);
window.addEventListener("resize", () => showTimeline(last));
connect();
