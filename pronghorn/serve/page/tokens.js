// Tokens, each coloured by where it came from. A list is one stop of the Tab key; arrows go through it.

import { $, el } from "./dom.js";

export const ORIGINS = {
  model: "the model's own",
  drafted: "drafted, verified",
  forced: "forced by the grammar",
  shared: "prompt, from the cache",
  prompt: "prompt, run",
};

export class TokenList {
  /** label: what the list is called when it is read aloud. */
  constructor(label) {
    this.node = el("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.node.addEventListener("pointerover", (event) => tip(event.target.closest(".tok")));
    this.node.addEventListener("pointerleave", () => tip(null));
    this.node.addEventListener("focusin", (event) => this.#enter(event.target));
    this.node.addEventListener("focusout", () => tip(null));
    this.node.addEventListener("scroll", () => tip(null), { passive: true });
  }

  /** Show the tokens; those that are there stay. */
  show(tokens) {
    const from = this.node.children.length;
    this.node.append(...tokens.slice(from).map((token, i) => one(token, from + i)));
    if (!from && this.node.firstElementChild) this.node.firstElementChild.tabIndex = 0;
  }

  #enter(node) {
    for (const other of this.node.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    node.tabIndex = 0;
    tip(node);
  }

  #key(event) {
    const at = document.activeElement;
    const next = {
      ArrowRight: at.nextElementSibling, ArrowDown: at.nextElementSibling,
      ArrowLeft: at.previousElementSibling, ArrowUp: at.previousElementSibling,
      Home: this.node.firstElementChild, End: this.node.lastElementChild,
    }[event.key];
    if (next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    next?.focus();
  }
}

function one([id, text, origin], index) {
  const kind = origin in ORIGINS ? origin : "model";
  const node = el("span", { class: `tok o-${kind}`, role: "option", tabindex: "-1",
    "aria-label": `${spoken(text)}, id ${id}, ${ORIGINS[kind]}` });
  node.token = { id, text, kind, index };
  // A line end keeps its place in the text and shows where it is.
  text.split("\n").forEach((part, i) => {
    if (i) node.append(el("i", { text: "⏎" }), "\n");
    node.append(part);
  });
  if (!text) node.append(el("i", { text: "▯" })); // part of a character, or a mark without text
  return node;
}

const spoken = (text) => (text.trim() ? text : text ? "white space" : "no text");

/** Tell of a token beside it; null hides what is shown. */
export function tip(node) {
  const box = $("tip");
  box.hidden = !node?.token;
  if (box.hidden) return;
  const { id, text, kind, index } = node.token;
  box.replaceChildren(el("code", { text: JSON.stringify(text) }), ` · id ${id} · no. ${index + 1}`, el("br"), ORIGINS[kind]);
  const at = node.getClientRects()[0];
  const own = box.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - own.width - 8));
  const above = at.top - own.height - 6;
  box.style.left = `${left}px`;
  box.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}
