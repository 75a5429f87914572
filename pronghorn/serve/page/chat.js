// The conversation: sending, streaming, stopping, answering again, editing. An answer belongs to its chat, not to what
// is on the screen: one may look at another chat, or at the live view, while it is written.

import { Failure, chat as stream, post } from "./api.js";
import { body } from "./command.js";
import { $, el, icon, say } from "./dom.js";
import { MessageView } from "./message.js";
import * as store from "./store.js";
import { tip } from "./tokens.js";

const TRY = {
  "Repeat a sentence": "Repeat exactly:\nThe quick brown fox jumps over the lazy dog and counts 4821 boats.",
  "Look up a value": "Registry:\namber: 4821\nlantern: 907\nharbour: 3356\nWhat is the value of harbour?",
};
const SAVE_EVERY = 2000; // milliseconds, while an answer is written
const SAY_EVERY = 2500;

export class ChatView {
  #runs = new Map(); // chat id -> {abort, message, spoken, said, saved}
  #troubles = new Map(); // chat id -> Failure
  #views = [];
  #shown = null;

  /** settings: the Settings; trouble as in Live; changed() is called when the list of chats should be drawn. */
  constructor(settings, trouble, changed) {
    this.settings = settings;
    this.trouble = trouble;
    this.changed = changed;
    this.as = "markdown";
    const field = $("message");
    $("compose").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    field.addEventListener("input", () => this.#fit());
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    $("stop").addEventListener("click", () => this.stop());
    this.open(store.create());
  }

  busy = (id) => this.#runs.has(id);

  get answering() {
    return this.busy(this.chat.id);
  }

  open(chat) {
    this.chat = chat;
    this.#draw();
  }

  show(as) {
    this.as = as;
    $("legend").hidden = as !== "tokens";
    tip(null);
    const stuck = this.#atEnd();
    for (const view of this.#views) view.draw();
    if (stuck) this.#toEnd();
  }

  /** What the commands of the settings carry: the chat so far and what is being written. */
  get messages() {
    const told = plain(this.chat.messages);
    const next = $("message").value.trim();
    if (next) return [...told, { role: "user", content: $("message").value }];
    while (told.length && told.at(-1).role !== "user") told.pop();
    return told.length ? told : [{ role: "user", content: "Hello" }];
  }

  send() {
    const text = $("message").value;
    if (!text.trim() || this.answering) return;
    $("message").value = "";
    this.#fit();
    const { chat } = this;
    chat.messages.push({ role: "user", content: text });
    if (!chat.title) chat.title = text.trim().split("\n").join(" ").slice(0, 60);
    this.#answer(chat);
  }

  /** Write the last answer anew. */
  again() {
    const { chat } = this;
    if (this.answering) return;
    while (chat.messages.length && chat.messages.at(-1).role !== "user") chat.messages.pop();
    if (chat.messages.length) this.#answer(chat);
  }

  /** Edit the user's last message. */
  editLast() {
    if (this.answering) return;
    const view = this.#views.findLast((v) => v.message.role === "user");
    view?.tools.querySelector('[data-act="edit"]').click();
  }

  stop() {
    this.#runs.get(this.chat.id)?.abort.abort();
  }

  /** End what a chat that is being deleted still runs. */
  drop(id) {
    this.#runs.get(id)?.abort.abort();
    this.#troubles.delete(id);
  }

  async #answer(chat) {
    let request;
    const asked = {}; // what the answer was asked of, besides the messages
    this.#troubles.delete(chat.id);
    try {
      const settings = this.settings.value;
      if (settings.seed === null) {
        settings.seed = asked.seed = settings.temperature > 0 ? crypto.getRandomValues(new Uint32Array(1))[0] : 0;
      }
      asked.model = settings.model;
      asked.system = settings.system;
      request = body(settings, plain(chat.messages));
    } catch (error) {
      this.#fail(chat, new Failure(error.message, "settings"));
      return;
    }
    const message = { role: "assistant", content: "", tokens: [], finish: "", ...asked };
    const run = { abort: new AbortController(), message, spoken: 0, said: Date.now(), saved: Date.now() };
    chat.messages.push(message);
    chat.updated = Date.now();
    this.#runs.set(chat.id, run);
    if (this.chat === chat) {
      this.#draw();
      this.#toEnd();
      say("Answering.");
    }
    this.#keep(chat);
    let failure = null;
    try {
      request.pronghorn = { ...request.pronghorn, trace: true };
      for await (const chunk of stream(request, run.abort.signal)) {
        take(message, chunk);
        this.#view(message)?.update();
        if (this.chat === chat) this.#speak(run);
        if (Date.now() - run.saved > SAVE_EVERY) {
          run.saved = Date.now();
          store.save(chat);
        }
      }
    } catch (error) {
      if (run.abort.signal.aborted) message.finish = "cancelled";
      else {
        failure = error instanceof Failure ? error : new Failure(`The page failed: ${error.message}`);
        message.finish = "broken";
      }
    }
    this.#runs.delete(chat.id);
    if (failure && !message.content) chat.messages.pop();
    if (this.chat === chat) this.#finish(run, failure);
    if (failure) this.#fail(chat, failure);
    if (store.get(chat.id)) this.#keep(chat); // unless it was deleted meanwhile
  }

  #keep(chat) {
    store.save(chat);
    this.changed();
  }

  #fail(chat, failure) {
    this.#troubles.set(chat.id, failure);
    if (this.chat === chat) this.#draw();
  }

  #finish(run, failure) {
    const stuck = this.#atEnd();
    this.#view(run.message)?.draw();
    this.#buttons();
    if (stuck) this.#toEnd();
    if (failure) return; // the alert tells
    const rest = run.message.content.slice(run.spoken);
    say(run.message.finish === "cancelled" ? "Stopped." : `${rest.slice(0, 2000)} Answer complete.`);
  }

  /** Whole sentences, now and then: a screen reader that is told every token never finishes one. */
  #speak(run) {
    if (Date.now() - run.said < SAY_EVERY) return;
    const text = run.message.content.slice(run.spoken);
    const end = Math.max(text.lastIndexOf(". "), text.lastIndexOf("\n"), text.lastIndexOf("? "), text.lastIndexOf("! "));
    if (end < 0) return;
    run.spoken += end + 1;
    run.said = Date.now();
    say(text.slice(0, end + 1));
  }

  // ---------------------------------------------------------------- drawing

  #view = (message) => this.#views.find((v) => v.message === message);

  #draw() {
    const { chat } = this;
    tip(null);
    $("chat-title").textContent = chat.title || "New chat";
    this.#views = chat.messages.map((message, i) => new MessageView(message, {
      as: () => this.as,
      live: () => this.#runs.get(chat.id)?.message === message,
      actions: {
        prompt: () => promptTokens(message, plain(chat.messages.slice(0, i))),
        again: () => this.#from(i, () => this.again()),
        edit: (text) => this.#from(i, () => {
          $("message").focus();
          chat.messages.push({ role: "user", content: text });
          this.#answer(chat);
        }),
      },
    }));
    const home = $("thread");
    home.replaceChildren(...(this.#views.length ? this.#views.map((v) => v.node) : [this.#empty()]));
    // Where it ends is where one reads on, unless another chat's answer is looked at half way up.
    if (this.#shown !== chat.id || this.answering) this.#toEnd();
    this.#shown = chat.id;
    this.#watchSize();
    this.#buttons();
    this.trouble(this.#troubles.get(chat.id) ?? null, () => this.again());
    this.settings.write();
  }

  /** Forget what comes at and after message i, then go on. */
  #from(i, then) {
    if (this.answering) return;
    this.chat.messages.length = i;
    then();
  }

  #buttons() {
    const moved = document.activeElement === $("stop") || document.activeElement === $("send");
    $("stop").hidden = !this.answering;
    $("send").hidden = this.answering;
    if (moved) (this.answering ? $("stop") : $("message")).focus();
  }

  #empty() {
    const mark = icon("mark");
    mark.classList.add("mark");
    return el("div", { class: "empty" }, mark, el("h3", { text: "Ask the model something" }),
      el("p", { text: "Then switch to Tokens to see where each one came from." }),
      el("ul", {}, ...Object.entries(TRY).map(([name, text]) => el("li", {}, el("button", { type: "button", click: () => {
        $("message").value = text;
        this.#fit();
        $("message").focus();
        this.settings.write();
      } }, name)))));
  }

  #fit() {
    const field = $("message");
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
    this.settings.write();
  }

  #atEnd() {
    const home = $("thread");
    return home.scrollHeight - home.scrollTop - home.clientHeight < 60;
  }

  #toEnd() {
    $("thread").scrollTop = $("thread").scrollHeight;
  }

  /** Follow the text while the end is in sight. */
  #watchSize() {
    this.sizes?.disconnect();
    const last = this.#views.at(-1)?.node;
    if (!last) return;
    let height = last.offsetHeight;
    this.sizes = new ResizeObserver(() => {
      const grown = last.offsetHeight - height;
      height = last.offsetHeight;
      const home = $("thread");
      const before = home.scrollHeight - grown - home.scrollTop - home.clientHeight;
      if (grown > 0 && before < 60 && this.answering) this.#toEnd();
    });
    this.sizes.observe(last);
  }
}

/** The tokens of an answer's prompt: its beginning came from the cache, as far as the receipt says. */
async function promptTokens({ model, system, receipt }, messages) {
  const asked = system ? [{ role: "system", content: system }, ...messages] : messages;
  const found = await post("tokenize", { model, messages: asked, return_token_strs: true });
  return found.tokens.map((id, k) => [id, found.token_strs[k], k < receipt.reused_tokens ? "shared" : "prompt"]);
}

/** Messages as the API takes them; an answer that never came is none. */
function plain(messages) {
  return messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
}

/** Add a chunk to the answer. */
function take(message, chunk) {
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) message.content += choice.delta.content;
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  const ours = chunk.pronghorn;
  if (!ours) return;
  for (const { id, text, origin } of ours.tokens ?? []) message.tokens.push([id, text, origin]);
  if (ours.receipt) message.receipt = ours.receipt;
}
