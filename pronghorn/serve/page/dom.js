// Making nodes. Text only ever becomes a text node; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes (a function is a listener, `class` and `text` are what they say) and children. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** One of the drawings that index.html defines. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A button with a drawing; its name is read aloud and shown on hover. */
export function iconButton(name, label, onclick, extra = {}) {
  return el("button", { type: "button", class: "quiet", "aria-label": label, title: label, click: onclick, ...extra },
    icon(name));
}

export const $ = (id) => document.getElementById(id);

/** Copy text, and say so on the button for a moment. */
export async function copy(text, button) {
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyBySelection(text) ? "Copied" : "Copying failed";
  }
  say(done);
  button.dataset.done = done;
  setTimeout(() => delete button.dataset.done, 1600);
}

/** For pages over plain HTTP from another machine, where there is no clipboard to ask. */
function copyBySelection(text) {
  const field = el("textarea", { class: "off-screen", "aria-hidden": "true" });
  field.value = text;
  const before = document.activeElement;
  document.body.append(field);
  field.select();
  const ok = document.execCommand("copy");
  field.remove();
  before?.focus();
  return ok;
}

/** Have a screen reader say something when it is next silent. */
export function say(text) {
  $("said").textContent = text;
}

// ---------------------------------------------------------------- numbers for people

export function bytes(n) {
  if (!Number.isFinite(n)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i === 0 || n >= 100 ? n.toFixed(0) : n.toFixed(1)} ${units[i]}`;
}

export function number(n, digits = 0) {
  if (!Number.isFinite(n)) return "–";
  return n.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
}

/** A rate or a size in few characters: three figures are enough. */
export function short(n) {
  return number(n, n >= 100 ? 0 : n >= 10 ? 1 : 2);
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return minutes < 1440
    ? `${Math.floor(minutes / 60)} h ${minutes % 60} min`
    : `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}
