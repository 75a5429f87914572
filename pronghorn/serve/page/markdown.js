// Markdown to DOM nodes, for text that nobody vouches for.
//
// Text becomes text nodes and elements from the short list below; HTML in it is shown as it is written. Links go
// to http, https and mailto only, images are shown as links, so that reading an answer asks nothing of anybody.
// Every step looks at a character a bounded number of times, and nesting is bounded, so no text is slow.

import { copy, el } from "./dom.js";

const DEPTH = 8; // of quotes, lists and emphasis inside each other
const COLUMNS = 64; // of a table; more is text with bars in it
const LONGEST = 400_000; // characters; what is longer is shown as it is

// ---------------------------------------------------------------- blocks

/** Show `text` in `home`; blocks that have not changed since the last call keep their nodes. */
export function show(home, text) {
  const found = text.length > LONGEST ? [{ kind: "plain", source: text, text }] : blocks(text.split("\n"), 0);
  let i = 0;
  for (; i < found.length; i++) {
    const before = home.children[i];
    const name = found[i].kind + "\0" + found[i].source;
    if (before && before.shown === name) continue;
    const node = build(found[i]);
    node.shown = name;
    if (before) before.replaceWith(node);
    else home.append(node);
  }
  while (home.children.length > i) home.lastElementChild.remove();
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?:\s|$)/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?! )|(?=$)| (?= {4}))/;
const DELIMITER = /^:?-+:?$/;

function blocks(lines, depth) {
  const out = [];
  let i = 0;
  const add = (kind, from, more) => out.push({ kind, source: lines.slice(from, i).join("\n"), depth, ...more });
  while (i < lines.length) {
    const line = lines[i];
    const from = i;
    let m;
    if (!line.trim()) {
      i++;
    } else if ((m = fence(line))) {
      const close = new RegExp(`^ {0,3}${m.mark[0]}{${m.mark.length},}\\s*$`);
      for (i++; i < lines.length && !close.test(lines[i]); i++);
      const text = lines.slice(from + 1, i).join("\n");
      i = Math.min(i + 1, lines.length);
      add("code", from, { language: m.language, text });
    } else if ((m = HEADING.exec(line))) {
      i++;
      add("heading", from, { level: m[1].length, text: line.slice(m[0].length).trim().replace(/(?:^|\s)#{1,6}$/, "") });
    } else if (RULE.test(line)) {
      i++;
      add("rule", from);
    } else if (depth < DEPTH && QUOTE.test(line)) {
      const inner = [];
      for (; i < lines.length && QUOTE.test(lines[i]); i++) inner.push(lines[i].replace(QUOTE, ""));
      add("quote", from, { inner });
    } else if (depth < DEPTH && ITEM.test(line)) {
      const list = readList(lines, i);
      i = list.end;
      add("list", from, list);
    } else if (startsTable(lines, i)) {
      const align = cells(lines[i + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "right") : ""));
      const rows = [];
      for (i += 2; i < lines.length && lines[i].trim() && lines[i].includes("|"); i++) rows.push(cells(lines[i]));
      add("table", from, { head: cells(line), align, rows });
    } else {
      for (i++; i < lines.length && !interrupts(lines[i], depth) && !startsTable(lines, i); i++);
      add("paragraph", from, { text: lines.slice(from, i).map((l) => l.trimStart()).join("\n").trimEnd() });
    }
  }
  return out;
}

function fence(line) {
  const m = FENCE.exec(line);
  const info = m ? line.slice(m[0].length).trim() : "";
  if (!m || (m[1][0] === "`" && info.includes("`"))) return null;
  return { mark: m[1], language: info.slice(0, 40).split(/\s/)[0] };
}

function startsTable(lines, i) {
  if (!lines[i].includes("|") || !lines[i + 1]?.includes("-")) return false;
  const delimiters = cells(lines[i + 1]);
  return delimiters.length <= COLUMNS && delimiters.every((c) => DELIMITER.test(c)) && delimiters.length === cells(lines[i]).length;
}

function interrupts(line, depth) {
  return !line.trim() || fence(line) || HEADING.test(line) || RULE.test(line)
    || (depth < DEPTH && (QUOTE.test(line) || /^ {0,3}(?:[-*+]|1[.)]) +\S/.test(line)));
}

function readList(lines, from) {
  const first = ITEM.exec(lines[from]);
  const ordered = /\d/.test(first[2]);
  const sort = first[2].at(-1);
  const items = [];
  let loose = false;
  let i = from;
  while (i < lines.length) {
    const m = ITEM.exec(lines[i]);
    if (!m || m[2].at(-1) !== sort || RULE.test(lines[i])) break;
    const indent = m[0].length + (m[3] ? 0 : 1);
    const inner = [lines[i].slice(m[0].length)];
    let blank = false;
    for (i++; i < lines.length; i++) {
      const l = lines[i];
      if (!l.trim()) {
        blank = true;
        inner.push("");
      } else if (leading(l) >= indent || (leading(l) >= 2 && ITEM.test(l.trimStart()))) {
        loose ||= blank && leading(l) === indent;
        blank = false;
        inner.push(l.slice(Math.min(indent, leading(l))));
      } else if (blank || ITEM.test(l) || interrupts(l, 0)) {
        break;
      } else {
        inner.push(l.trimStart()); // a lazy line of the paragraph before
      }
    }
    if (blank && i < lines.length && ITEM.test(lines[i])) loose = true;
    items.push(inner);
  }
  return { end: i, ordered, start: ordered ? parseInt(first[2], 10) : 1, items, loose };
}

const leading = (line) => line.length - line.trimStart().length;

function cells(line) {
  const out = [""];
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  let code = false;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") out[out.length - 1] += text[++i];
    else if (text[i] === "|" && !code) out.push("");
    else {
      if (text[i] === "`") code = !code;
      out[out.length - 1] += text[i];
    }
  }
  return out.map((c) => c.trim());
}

function build(block) {
  switch (block.kind) {
    case "plain": return el("pre", { class: "plain", text: block.text });
    case "code": return codeBlock(block.text, block.language);
    // The page has headings of its own above: a message begins at the third level.
    case "heading": return el(`h${Math.min(block.level + 2, 6)}`, { class: `level-${block.level}` }, ...inline(block.text));
    case "rule": return el("hr");
    case "quote": return el("blockquote", {}, ...blocks(block.inner, block.depth + 1).map(build));
    case "list": return list(block);
    case "table": return table(block);
    default: return el("p", {}, ...inline(block.text));
  }
}

function codeBlock(text, language) {
  const button = el("button", { type: "button", class: "copy", click: () => copy(text, button) }, "Copy");
  return el("figure", { class: "code" },
    el("figcaption", {}, el("span", { text: language || "text" }), button),
    el("pre", { tabindex: "0" }, el("code", { text })));
}

function list(block) {
  const items = block.items.map((lines) => {
    const task = /^\[([ xX])\] /.exec(lines[0]);
    const inner = blocks(task ? [lines[0].slice(4), ...lines.slice(1)] : lines, block.depth + 1);
    const nodes = inner.flatMap((b) => (b.kind === "paragraph" && !block.loose ? inline(b.text) : [build(b)]));
    if (!task) return el("li", {}, ...nodes);
    const done = task[1] !== " ";
    return el("li", { class: "task" },
      el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" }), ...nodes);
  });
  return block.ordered
    ? el("ol", { start: block.start === 1 ? undefined : block.start }, ...items)
    : el("ul", {}, ...items);
}

function table(block) {
  const row = (tag, texts) => el("tr", {}, ...texts.slice(0, block.align.length).map((text, i) =>
    el(tag, { class: block.align[i] && `align-${block.align[i]}`, scope: tag === "th" && "col" }, ...inline(text))));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {},
      el("thead", {}, row("th", block.head)),
      el("tbody", {}, ...block.rows.map((r) => row("td", r)))));
}

// ---------------------------------------------------------------- text inside a block

const URL_HERE = /https?:\/\/[^\s<>"`\\^{}|]+/y;
const LINK_TARGET = /\(\s*(?:<([^<>\n]{0,2000})>|([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4}))(?:\s+(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s*\)/y;
const WORD = /[\p{L}\p{N}_]/u;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** Nodes of a run of text. */
function inline(text, links = true) {
  const out = [];
  const open = { "*": [], _: [], "~": [] }; // marks that may still be closed, by their place in `out`
  const noEnd = new Set(); // runs of backticks that nothing closes
  let plain = "";
  let i = 0;
  const put = (node) => {
    if (plain) out.push(document.createTextNode(plain));
    plain = "";
    if (node) out.push(node);
  };
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && PUNCTUATION.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (c === "\n") {
      plain = (plain.endsWith("\\") ? plain.slice(0, -1) : plain).trimEnd();
      put(el("br"));
      i++;
    } else if (c === "`") {
      const n = run(text, i);
      const end = noEnd.has(n) ? -1 : closing(text, i + n, n);
      if (end < 0) {
        noEnd.add(n);
        plain += text.slice(i, i + n);
        i += n;
      } else {
        put(el("code", { text: stripped(text.slice(i + n, end).replaceAll("\n", " ")) }));
        i = end + n;
      }
    } else if (links && (c === "[" || (c === "!" && text[i + 1] === "["))) {
      const link = readLink(text, c === "!" ? i + 1 : i);
      if (link) {
        put(anchor(link.url, inline(link.label || link.url, false), c === "!"));
        i = link.end;
      } else {
        plain += c;
        i++;
      }
    } else if (links && (c === "h" || c === "<") && (c === "<" || !WORD.test(text[i - 1] ?? ""))) {
      URL_HERE.lastIndex = c === "<" ? i + 1 : i;
      const m = URL_HERE.exec(text);
      const bare = m && (c === "<" ? m[0] : trimmed(m[0]));
      const end = m ? URL_HERE.lastIndex - (m[0].length - bare.length) : 0;
      if (m && (c !== "<" || text[end] === ">")) {
        put(anchor(bare, [document.createTextNode(bare)]));
        i = end + (c === "<" ? 1 : 0);
      } else {
        plain += c;
        i++;
      }
    } else if (c in open) {
      const n = run(text, i);
      put();
      marks(out, open, c, n, text[i - 1] ?? " ", text[i + n] ?? " ");
      i += n;
    } else {
      plain += c;
      i++;
    }
  }
  put();
  return out.map((node) => (node.mark ? document.createTextNode(node.mark.repeat(node.left)) : node));
}

function run(text, i) {
  let n = 1;
  while (text[i + n] === text[i]) n++;
  return n;
}

/** Where a run of exactly n backticks begins. */
function closing(text, from, n) {
  for (let i = text.indexOf("`", from); i >= 0; i = text.indexOf("`", i)) {
    const found = run(text, i);
    if (found === n) return i;
    i += found;
  }
  return -1;
}

const stripped = (code) => (code.trim() && code.startsWith(" ") && code.endsWith(" ") ? code.slice(1, -1) : code);

/** Close what these marks close, then let the rest of them open. */
function marks(out, open, mark, n, before, after) {
  const space = /\s/;
  const leftFlank = !space.test(after) && (!PUNCTUATION.test(after) || space.test(before) || PUNCTUATION.test(before));
  const rightFlank = !space.test(before) && (!PUNCTUATION.test(before) || space.test(after) || PUNCTUATION.test(after));
  const canOpen = leftFlank && (mark !== "_" || !rightFlank || PUNCTUATION.test(before));
  const canClose = rightFlank && (mark !== "_" || !leftFlank || PUNCTUATION.test(after));
  let left = n;
  while (canClose && left > 0 && open[mark].length) {
    const opener = open[mark].at(-1);
    const width = mark === "~" ? 2 : Math.min(left, out[opener].left, 2);
    if (left < width || out[opener].left < width) break;
    const inside = out.splice(opener + 1).map((x) => (x.mark ? document.createTextNode(x.mark.repeat(x.left)) : x));
    for (const places of Object.values(open)) while (places.length && places.at(-1) > opener) places.pop();
    const depth = 1 + inside.reduce((deepest, x) => Math.max(deepest, x.depth ?? 0), 0);
    if (depth > DEPTH) out.push(...inside);
    else {
      const node = el(mark === "~" ? "del" : width === 2 ? "strong" : "em", {}, ...inside);
      node.depth = depth;
      out.push(node);
    }
    left -= width;
    out[opener].left -= width;
    if (out[opener].left === 0) open[mark].pop(); // stays in `out` as a mark of no width
  }
  if (left > 0) {
    out.push({ mark, left });
    if (canOpen) open[mark].push(out.length - 1);
  }
}

function readLink(text, from) {
  let nested = 0;
  const stop = Math.min(text.length, from + 1000);
  for (let i = from + 1; i < stop; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") {
      if (++nested > 4) return null;
    } else if (text[i] === "]" && nested-- === 0) {
      if (text[i + 1] !== "(") return null;
      LINK_TARGET.lastIndex = i + 1;
      const m = LINK_TARGET.exec(text);
      return m && { label: text.slice(from + 1, i), url: m[1] ?? m[2], end: LINK_TARGET.lastIndex };
    }
  }
  return null;
}

/** Without the punctuation that ends the sentence rather than the address. */
function trimmed(url) {
  const brackets = url.includes("(");
  let end = url.length;
  while (end > 0) {
    const c = url[end - 1];
    if (/[.,;:!?'*_~\]]/.test(c)) end--;
    else if (c === ")" && !brackets) end--;
    else break;
  }
  return url.slice(0, end);
}

function anchor(target, children, image = false) {
  let url = null;
  try {
    url = new URL(target);
  } catch {
    // Not an absolute address: it leads nowhere from here.
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return el("span", { class: "no-link", title: target }, ...children);
  return el("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank", title: url.href },
    image ? "🖼 " : null, ...children);
}
