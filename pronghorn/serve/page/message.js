// One message on the page.

import { bytes, copy, duration, el, iconButton, number, short } from "./dom.js";
import { show as showMarkdown } from "./markdown.js";
import { TokenList } from "./tokens.js";

const ENDS = {
  length: "Cut at the token limit.",
  cancelled: "Stopped.",
  broken: "Incomplete: the connection ended.",
};

export class MessageView {
  #slow = 0; // milliseconds that the last drawing took
  #due = 0;

  /** actions: {again(), edit(text), prompt(), the tokens of its prompt}; as(): "markdown" or "tokens"; live(): whether it is being written. */
  constructor(message, { actions, as, live }) {
    this.message = message;
    this.actions = actions;
    this.as = as;
    this.live = live;
    this.body = el("div", { class: "body", dir: "auto" });
    this.end = el("p", { class: "note-line", hidden: true });
    this.receipt = el("div", { class: "receipt" });
    this.tools = el("div", { class: "tools" },
      iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget)),
      message.role === "user"
        ? iconButton("edit", "Edit", () => this.edit(actions.edit), { "data-act": "edit" })
        : iconButton("again", "Answer again", actions.again, { "data-act": "again" }));
    this.node = el("article", { class: `message ${message.role}`, "aria-label": message.role === "user" ? "You" : "Answer" },
      this.body, this.end, this.receipt, this.tools);
    this.draw();
  }

  /** Draw soon: as often as the screen does, less often when drawing is slow. */
  update() {
    if (this.#due) return;
    this.#due = setTimeout(() => requestAnimationFrame(() => {
      this.#due = 0;
      if (this.node.isConnected) this.draw();
    }), this.#slow * 8);
  }

  draw() {
    const start = performance.now();
    const { message } = this;
    const live = this.live();
    const kind = message.role === "user" ? "text" : this.as();
    if (this.kind !== kind) {
      this.kind = kind;
      this.body.replaceChildren();
      this.body.className = kind === "markdown" ? "body md" : "body";
      this.lists = null;
    }
    if (kind === "text") this.body.textContent = message.content;
    else if (!message.content && live) this.body.replaceChildren(el("span", { class: "waiting", role: "img", "aria-label": "Waiting for the first token" }));
    else if (kind === "markdown") showMarkdown(this.body, message.content);
    else this.#tokens();
    this.#close(live);
    this.#slow = performance.now() - start;
  }

  #tokens() {
    const { message } = this;
    if (!message.tokens?.length) {
      this.body.replaceChildren(el("div", { class: "tokens", text: message.content }),
        el("p", { class: "note-line", text: "Where its tokens came from is not known." }));
      return;
    }
    if (!this.lists) {
      this.lists = { prompt: null, answer: new TokenList("Tokens of the answer") };
      this.body.replaceChildren(this.lists.answer.node);
    }
    this.lists.answer.show(message.tokens);
    if (message.receipt && !this.lists.prompt) this.#prompt(message.receipt);
  }

  /** The prompt's tokens are asked for when somebody wants to see them. */
  #prompt({ prompt_tokens: all, reused_tokens: reused }) {
    const list = (this.lists.prompt = new TokenList("Tokens of the prompt"));
    const note = el("p", { class: "note-line", role: "status" });
    const box = el("details", { class: "prompt-tokens" },
      el("summary", { text: `Prompt: ${number(all)} tokens, ${number(reused)} from the cache` }), note, list.node);
    box.addEventListener("toggle", async () => {
      if (!box.open || list.node.firstChild) return;
      note.textContent = "Asking for them …";
      try {
        list.show(await this.actions.prompt());
        note.textContent = "";
      } catch (failure) {
        note.textContent = failure.message;
      }
    });
    this.body.prepend(box);
  }

  #close(live) {
    const { message } = this;
    const text = live ? "" : (ENDS[message.finish] ?? "");
    this.end.textContent = text;
    this.end.hidden = !text;
    this.tools.hidden = live;
    if (message.receipt && !this.receipt.firstChild) this.receipt.append(receipt(message));
  }

  /** Turn the message into a field. */
  edit(done) {
    const field = el("textarea", { rows: Math.min(12, this.message.content.split("\n").length + 1), "aria-label": "Message" });
    field.value = this.message.content;
    const close = () => {
      form.replaceWith(this.body);
      this.tools.hidden = false;
      this.tools.querySelector('[data-act="edit"]').focus();
    };
    const form = el("form", { class: "editor", submit: (event) => {
      event.preventDefault();
      if (field.value.trim()) done(field.value);
    } }, field, el("div", {}, el("button", { type: "button", click: close }, "Cancel"), el("button", { type: "submit" }, "Send")));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.body.replaceWith(form);
    this.tools.hidden = true;
    field.focus();
  }
}

/** The line under an answer; opened, everything that is known of it. */
function receipt({ receipt: r, seed }) {
  const drafts = Object.values(r.drafters ?? {});
  const [drafted, accepted] = ["drafted", "accepted"].map((key) => drafts.reduce((sum, d) => sum + d[key], 0));
  const [held, full] = ["kv_bytes", "kv_full"].map((key) => (r.branches ?? []).reduce((sum, b) => sum + b[key], 0));
  const share = full ? Math.round((100 * held) / full) : 0;
  // The first step's tokens come with the first token, so they are not counted.
  const rate = (r.new_tokens - r.accepted_length) / (r.seconds - r.first_token_seconds);
  const line = [
    r.steps > 1 && rate > 0 ? `${short(rate)} tokens/s` : `${number(r.new_tokens)} tokens`,
    r.first_token_seconds === null ? "" : `first token ${duration(r.first_token_seconds)}`,
    drafted ? `drafted ${number(drafted)}, accepted ${number(accepted)}` : "",
    r.forced_tokens ? `forced ${number(r.forced_tokens)}` : "",
    r.reused_tokens ? `reused ${number(r.reused_tokens)} of ${number(r.prompt_tokens)} prompt tokens` : "",
    `KV ${bytes(held)}` + (share && share !== 100 ? ` (${share} % of full)` : ""),
    r.guarantee,
  ];
  const all = el("dl", {});
  for (const [name, value] of facts({ ...r, ...(seed !== undefined && { seed }) })) {
    all.append(el("dt", { text: name }), el("dd", { text: value }));
  }
  return el("details", {}, el("summary", { title: "Receipt" }, ...line.filter(Boolean).map((text) => el("span", { text }))), all);
}

/** Names and values, those inside each other in a row. */
function facts(data, before = "") {
  return Object.entries(data).flatMap(([key, value]) => {
    const name = before + key.replaceAll("_", " ");
    if (value === null || value === "") return [];
    if (Array.isArray(value)) {
      return typeof value[0] === "object" ? value.flatMap((v, i) => facts(v, `branch ${i + 1} `)) : [[name, value.join(", ")]];
    }
    if (typeof value === "object") return facts(value, `${name} `);
    if (key === "created") return [[name, new Date(value * 1000).toLocaleString()]];
    if (key.startsWith("kv_")) return [[name, bytes(value)]];
    if (key.endsWith("seconds")) return [[name.replace(/ ?seconds$/, "") || "time", duration(value)]];
    return [[name, typeof value === "number" && !Number.isInteger(value) ? number(value, 3) : String(value)]];
  });
}
