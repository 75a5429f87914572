// Conversations in localStorage, one entry each, so that two tabs do not overwrite each other's.
//
// A chat: {id, title, created, updated, messages}. A message: {role, content} and, of an answer, {model, system, seed,
// tokens, receipt, finish}; tokens are [id, text, origin], as the trace gave them.

const PREFIX = "pronghorn.chat.";

const known = new Map();
let complain = () => {};

/** Read what is stored. full(text) is called when there is no more room. */
export function open(full) {
  complain = full;
  let keys = [];
  try {
    keys = Object.keys(localStorage);
  } catch {
    complain("This browser keeps nothing for this page: chats end with the tab.");
  }
  for (const name of keys) if (name.startsWith(PREFIX)) read(name);
}

function read(name) {
  const id = name.slice(PREFIX.length);
  try {
    const chat = JSON.parse(localStorage.getItem(name));
    if (!Array.isArray(chat?.messages)) throw new Error("not a chat");
    known.set(id, { title: "", created: 0, updated: 0, ...chat, id });
  } catch {
    known.delete(id); // what this page did not write, or another tab removed
  }
}

/** Call `changed` when another tab saved or removed a chat; those that `mine` names are left alone. */
export function watch(mine, changed) {
  addEventListener("storage", (event) => {
    if (!event.key?.startsWith(PREFIX) || mine(event.key.slice(PREFIX.length))) return;
    read(event.key);
    changed(event.key.slice(PREFIX.length));
  });
}

export const get = (id) => known.get(id);

/** Last changed first. */
export const all = () => [...known.values()].sort((a, b) => b.updated - a.updated);

export function create() {
  const now = Date.now();
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: [...random].map((n) => n.toString(36)).join(""), title: "", created: now, updated: now, messages: [] };
}

export function save(chat) {
  known.set(chat.id, chat);
  if (write(chat)) return;
  // The traces are the bulk of it: the oldest ones give way, the text stays.
  for (const old of all().reverse()) {
    for (const message of old.messages) delete message.tokens;
    if (write(old) && write(chat)) return;
  }
  complain("This browser's storage is full: export chats and delete some.");
}

function write(chat) {
  try {
    localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    return true;
  } catch {
    return false;
  }
}

export function remove(id) {
  known.delete(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // Nothing was stored.
  }
}

/** A chat as Markdown, for people. */
export function asMarkdown(chat) {
  const parts = chat.messages.map((m) => `## ${m.role === "user" ? "You" : "Answer"}\n\n${m.content}`);
  return [`# ${chat.title || "Chat"}`, ...parts].join("\n\n") + "\n";
}
