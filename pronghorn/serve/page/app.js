// Puts the page together: views, theme, list of chats, shortcuts.

import { ChatView } from "./chat.js";
import { $, el, iconButton, say } from "./dom.js";
import { Live } from "./live.js";
import { Settings } from "./settings.js";
import * as store from "./store.js";
import { tip } from "./tokens.js";

const wide = matchMedia("(min-width: 1000px)");
const remembered = (name) => {
  try {
    return localStorage.getItem(`pronghorn.${name}`);
  } catch {
    return null;
  }
};
const remember = (name, value) => {
  try {
    localStorage.setItem(`pronghorn.${name}`, value);
  } catch {
    // Then it is as it is by default the next time.
  }
};

// ---------------------------------------------------------------- trouble, with a way out

/** A function that shows a failure in the box `id` with buttons that lead out of it. */
function troubleIn(id) {
  const box = $(id);
  return (failure, retry) => {
    box.hidden = !failure;
    if (!failure) return box.replaceChildren();
    if (box.dataset.text === failure.message && box.firstChild) return undefined; // do not read it aloud again
    box.dataset.text = failure.message;
    const button = (text, act) => el("button", { type: "button", click: () => {
      box.hidden = true;
      box.replaceChildren();
      act();
    } }, text);
    box.replaceChildren(el("span", { text: failure.message }));
    if (failure.way === "key") box.append(button("Enter the key", () => go("settings", "s-key")));
    if (failure.way === "settings") box.append(button("Open the settings", () => go("settings", "s-model")));
    box.append(button("Try again", retry), button("Dismiss", () => {}));
    return undefined;
  };
}

// ---------------------------------------------------------------- views

/** Show a view; beside the chat, where there is room, the settings are a panel that opens and closes. */
function go(view, focus = "") {
  if (wide.matches && view === "settings") {
    const open = focus !== "" || document.body.dataset.panel === undefined;
    if (open) document.body.dataset.panel = "";
    else delete document.body.dataset.panel;
    remember("panel", open ? "open" : "closed");
  } else {
    document.body.dataset.view = view;
  }
  arrange();
  if (focus) $(focus).focus();
}

function arrange() {
  const { body } = document;
  if (wide.matches && ["chats", "settings"].includes(body.dataset.view)) body.dataset.view = "chat";
  for (const button of document.querySelectorAll("[data-go]")) {
    const panel = wide.matches && button.dataset.go === "settings";
    button.toggleAttribute("aria-current", !panel && button.dataset.go === body.dataset.view);
    if (button.hasAttribute("aria-current")) button.setAttribute("aria-current", "page");
    if (panel) button.setAttribute("aria-expanded", String(body.dataset.panel !== undefined));
    else button.removeAttribute("aria-expanded");
  }
  live.shown = body.dataset.view === "live";
  tip(null);
}

// ---------------------------------------------------------------- theme

const THEMES = { "": "as the system", light: "light", dark: "dark" };

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  remember("theme", theme);
  const label = `Theme: ${THEMES[theme]}`;
  $("theme").setAttribute("aria-label", label);
  $("theme").title = `${label} (t)`;
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length]);
  say(`Theme: ${THEMES[document.documentElement.dataset.theme ?? ""]}`);
}

// ---------------------------------------------------------------- list of chats

function drawList() {
  $("list").replaceChildren(...store.all().map((one) => {
    const on = one.id === chat.chat.id;
    return el("li", { class: on ? "on" : undefined },
      el("button", { type: "button", class: chat.busy(one.id) ? "open busy" : "open", title: one.title,
        "aria-current": on ? "true" : undefined, click: () => openChat(one) }, one.title || "Chat"),
      iconButton("delete", `Delete ${one.title || "chat"}`, () => removeChat(one)));
  }));
  for (const id of ["export-one", "export-all"]) $(id).disabled = !store.all().length;
}

function openChat(one) {
  chat.open(one);
  go("chat");
  drawList();
}

function newChat() {
  openChat(store.create());
  $("message").focus();
}

function removeChat(one) {
  if (!confirm(`Delete “${one.title || "chat"}”? It is stored nowhere else.`)) return;
  chat.drop(one.id);
  store.remove(one.id);
  if (chat.chat.id === one.id) chat.open(store.all()[0] ?? store.create());
  drawList();
  ($("list").querySelector(".open") ?? $("new")).focus();
}

function step(by) {
  const all = store.all();
  const next = all[all.findIndex((c) => c.id === chat.chat.id) + by];
  if (!next) return;
  openChat(next);
  say(next.title);
}

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// ---------------------------------------------------------------- shortcuts

function showAs(as) {
  document.querySelector(`[name="as"][value="${as}"]`).checked = true;
  chat.show(as);
}

const KEYS = {
  "/": () => {
    go("chat");
    $("message").focus();
  },
  "?": () => $("help").showModal(),
  n: newChat,
  j: () => step(1),
  k: () => step(-1),
  r: () => chat.again(),
  e: () => chat.editLast(),
  v: () => showAs(chat.as === "markdown" ? "tokens" : "markdown"),
  1: () => go("chat"),
  2: () => go("live"),
  3: () => go("settings"),
  t: nextTheme,
};

function shortcut(event) {
  if ($("help").open || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
  const writes = event.target.matches?.("textarea, select, input:not([type=checkbox], [type=radio])");
  if (event.key === "Escape") {
    if (!$("tip").hidden) tip(null);
    else if (chat.answering) chat.stop();
    else if (writes) event.target.blur();
  } else if (!writes && $("keys-on").checked && Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

// ---------------------------------------------------------------- start

store.open((text) => troubleIn("trouble")({ message: text, way: "retry" }, () => chat.chat.messages.length && store.save(chat.chat)));
let chat = null; // the settings write their command before there is one
const settings = new Settings(() => chat?.messages ?? [{ role: "user", content: "Hello" }], troubleIn("settings-trouble"));
chat = new ChatView(settings, troubleIn("trouble"), () => drawList());
const live = new Live(troubleIn("live-trouble"), () => settings.wanted);

store.watch((id) => chat.busy(id), (id) => {
  if (id === chat.chat.id && store.get(id)) chat.open(store.get(id));
  drawList();
});
for (const button of document.querySelectorAll("[data-go]")) button.addEventListener("click", () => go(button.dataset.go));
for (const radio of document.querySelectorAll('[name="as"]')) radio.addEventListener("change", () => chat.show(radio.value));
$("new").addEventListener("click", newChat);
$("theme").addEventListener("click", nextTheme);
$("help-open").addEventListener("click", () => $("help").showModal());
$("export-one").addEventListener("click", () => download("chat.md", store.asMarkdown(chat.chat), "text/markdown"));
$("export-all").addEventListener("click", () => download("chats.json", JSON.stringify(store.all(), null, 1), "application/json"));
$("keys-on").checked = remembered("keys") !== "off";
$("keys-on").addEventListener("change", () => remember("keys", $("keys-on").checked ? "on" : "off"));
document.addEventListener("keydown", shortcut);
wide.addEventListener("change", arrange);

const theme = remembered("theme") ?? "";
setTheme(theme in THEMES ? theme : "");
if (remembered("panel") === "open" || (remembered("panel") === null && matchMedia("(min-width: 1280px)").matches)) document.body.dataset.panel = "";
arrange();
drawList();
settings.reload();
$("message").focus();
document.documentElement.dataset.ready = "";
