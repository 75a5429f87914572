// The live view: what the engine does now, asked for once a second while somebody looks.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { $, bytes, duration, el, number, short } from "./dom.js";

const EVERY = 1000; // milliseconds
const MOST = 200; // rows of a list that are drawn

export class Live {
  #timer = 0;
  #on = false;

  /** trouble(failure, retry) shows an error or, given null, takes it away; model() says which one to look at. */
  constructor(trouble, model) {
    this.trouble = trouble;
    this.model = model;
    this.charts = {
      tokens: new Chart("Tokens a second", short),
      prompt_tokens: new Chart("Prompt tokens a second", short),
      kv: new Chart("KV held", bytes),
      running: new Chart("Sequences running", number),
    };
    $("charts").append(...Object.values(this.charts).map((c) => c.node));
    document.addEventListener("visibilitychange", () => this.#go());
  }

  /** Whether the view is on the screen. */
  set shown(on) {
    if (on === this.#on) return;
    this.#on = on;
    this.#go();
  }

  #go() {
    clearTimeout(this.#timer);
    if (this.#on && !document.hidden) this.#poll();
  }

  async #poll() {
    clearTimeout(this.#timer);
    try {
      const name = this.model();
      this.show(await get(`pronghorn/state${name ? `?model=${encodeURIComponent(name)}` : ""}`));
      this.trouble(null);
    } catch (failure) {
      this.trouble(failure, () => this.#poll());
      document.querySelector(".live").classList.add("stale");
      if (failure.way === "key") return; // asking again would not help
    }
    if (this.#on && !document.hidden) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#poll(), EVERY);
    }
  }

  show(state) {
    document.querySelector(".live").classList.remove("stale");
    $("live-model").textContent = [state.model, state.guarantee, (state.methods ?? []).join(", ")].filter(Boolean).join(" · ");
    const { kv = {}, rates = {}, step = {}, running = [], waiting = [], history = [] } = state;
    $("tiles").replaceChildren(
      tile("tokens/s", short(rates.tokens ?? 0)),
      tile("prompt tokens/s", short(rates.prompt_tokens ?? 0)),
      tile("running", number(running.length), `${number(state.queue ?? waiting.length)} waiting`),
      tile("KV held", bytes(kv.held ?? 0), kv.limit ? `of ${bytes(kv.limit)}` : ""),
      tile("saved by sharing", bytes(kv.shared_saved ?? 0)),
      tile("last step", `${number(step.ms ?? 0, 1)} ms`, `${number(step.rows ?? 0)} rows`),
      tile("up", duration(state.uptime ?? 0)),
    );
    for (const [name, chart] of Object.entries(this.charts)) chart.show(history.map((h) => [h.t, h[name] ?? 0]));
    fill($("batch"), running, batchRow, "Nothing runs.");
    fill($("queue"), waiting, waitingRow, "Nobody waits.");
    $("tree").replaceChildren(tree(state.cache?.nodes ?? []));
  }
}

const tile = (name, value, more = "") =>
  el("div", {}, el("dt", { text: more ? `${name}, ${more}` : name }), el("dd", { text: value }));

function fill(home, rows, draw, nothing) {
  const nodes = rows.slice(0, MOST).map(draw);
  if (!rows.length) nodes.push(el("li", { class: "nothing", text: nothing }));
  if (rows.length > MOST) nodes.push(el("li", { class: "nothing", text: `and ${number(rows.length - MOST)} more` }));
  home.replaceChildren(...nodes);
}

function batchRow(r) {
  const reused = Math.min(r.reused ?? 0, r.prompt);
  const run = Math.max(0, Math.min(r.done ?? 0, r.prompt) - reused);
  const prompt = `${number(reused + run)} of ${number(r.prompt)}` + (reused ? `, ${number(reused)} from the cache` : "");
  return el("li", {},
    el("div", { class: "who" },
      el("code", { text: r.branch ? `${r.id}/${r.branch}` : r.id }),
      r.user ? el("span", { text: r.user }) : null,
      r.priority ? el("span", { class: "badge", text: `priority ${r.priority}` }) : null),
    meter("prompt", prompt, r.prompt, [["shared", reused], ["run", run]]),
    meter("answer", r.phase === "prompt" ? "not begun" : `${number(r.new)} of at most ${number(r.max_new)}`, r.max_new, [["new", r.new]]),
    el("span", { class: "age", text: duration(r.age), title: "since it came" }));
}

function meter(name, text, whole, parts) {
  const track = el("div", { class: "track", "aria-hidden": "true" });
  for (const [kind, n] of parts) track.append(bar(kind, whole ? n / whole : 0));
  return el("div", { class: "meter" }, track, el("span", { text: `${name}: ${text}` }));
}

function bar(kind, share) {
  const node = el("i", { class: kind });
  node.style.width = `${(100 * Math.max(0, Math.min(1, share))).toFixed(2)}%`;
  return node;
}

function waitingRow(w) {
  return el("li", {},
    el("code", { text: w.id }), w.user ? el("span", { text: w.user }) : null,
    el("span", { class: "muted", text: `${number(w.prompt)} prompt tokens · waits for ${duration(w.age)}` }));
}

/** The stored prefixes, each under the one that it continues. */
function tree(nodes) {
  if (!nodes.length) return el("p", { class: "nothing", text: "Nothing is stored." });
  const ids = new Set(nodes.map((n) => n.id));
  const below = new Map();
  for (const node of nodes) {
    const parent = ids.has(node.parent) && node.parent !== node.id ? node.parent : null;
    below.set(parent, [...(below.get(parent) ?? []), node]);
  }
  const most = Math.max(...nodes.map((n) => n.bytes || 0), 1);
  let left = MOST;
  const level = (parent, depth) => el("ul", {}, ...(below.get(parent) ?? []).flatMap((node) => {
    if (left-- <= 0) return [];
    return [el("li", {}, treeRow(node, most), below.has(node.id) && depth < 24 ? level(node.id, depth + 1) : null)];
  }));
  const drawn = level(null, 0);
  if (nodes.length > MOST) drawn.append(el("li", { class: "nothing", text: `${number(nodes.length)} nodes in all` }));
  return drawn;
}

function treeRow(node, most) {
  const size = el("span", { class: "size", "aria-hidden": "true" }, bar("", (node.bytes || 0) / most));
  return el("div", { class: node.on_disk ? "node disk" : "node" },
    size,
    el("span", { text: `${number(node.rows)} tokens` }),
    el("span", { class: "muted", text: bytes(node.bytes) }),
    el("span", { class: "muted", text: `${number(node.hits)} ${node.hits === 1 ? "hit" : "hits"}` }),
    el("span", { class: "badge", text: node.on_disk ? "on disk" : "in memory" }),
    node.users ? el("span", { class: "users", text: `${number(node.users)} on it` }) : null);
}
