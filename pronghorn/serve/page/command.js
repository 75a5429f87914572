// The settings written as a request, a shell command, a curl command and a Python program. Nothing here touches
// the page.
//
// settings: {model, temperature, topP, maxTokens, seed, system, schema, use}; seed is null when each answer draws its
// own, schema a value or null, use a list of {slot, name, options: {key: text}}.

export const DEFAULTS = { temperature: 0, topP: 1, maxTokens: 256, seed: 0 }; // of `pronghorn run`, too

/** name:key=value,... as `--use` and requests take it. Throws where a value cannot be written. */
export function spec({ slot, name, options }) {
  // Names of data types are methods of several slots.
  const full = /^[a-z]+\d+$/.test(name) ? `${slot}.${name}` : name;
  const given = Object.entries(options).map(([key, value]) => `${key}=${quoted(value, key)}`);
  return given.length ? `${full}:${given.join(",")}` : full;
}

function quoted(value, key) {
  if (!/^\s|\s$|,|^["']|=["']/.test(value)) return value;
  const quote = value.includes('"') ? "'" : '"';
  if (value.includes(quote)) throw new Error(`${key}: cannot have both kinds of quotes`);
  return quote + value + quote;
}

/** The body of a chat completion. */
export function body(settings, messages) {
  const out = { model: settings.model, messages: withSystem(settings, messages) };
  out.temperature = settings.temperature;
  if (settings.topP < 1) out.top_p = settings.topP;
  out.max_tokens = settings.maxTokens;
  if (settings.seed !== null) out.seed = settings.seed;
  if (settings.schema !== null) {
    const { schema } = settings;
    out.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }
  if (settings.use.length) out.pronghorn = { use: settings.use.map(spec) };
  return out;
}

const withSystem = (settings, messages) =>
  settings.system ? [{ role: "system", content: settings.system }, ...messages] : messages;

/** One word of a POSIX shell. */
export function word(text) {
  const clean = text.replaceAll("\0", "");
  return /^[\w/:=.,@%+-]+$/.test(clean) ? clean : `'${clean.replaceAll("'", "'\\''")}'`;
}

export function shell(settings, prompt) {
  const parts = [["pronghorn run"], ["--model", settings.model]];
  for (const method of settings.use) parts.push(["--use", spec(method)]);
  if (settings.topP < 1) parts.push(["--use", `top-p:p=${settings.topP}`]);
  if (settings.temperature !== DEFAULTS.temperature) parts.push(["--temperature", String(settings.temperature)]);
  if (settings.maxTokens !== DEFAULTS.maxTokens) parts.push(["--max-tokens", String(settings.maxTokens)]);
  if (settings.seed !== null && settings.seed !== DEFAULTS.seed) parts.push(["--seed", String(settings.seed)]);
  if (settings.system) parts.push(["--system", settings.system]);
  if (settings.schema !== null) parts.push(["--json-schema", JSON.stringify(settings.schema)]);
  parts.push(prompt.startsWith("-") ? ["--", prompt] : [prompt]);
  return parts.map(([first, ...rest], i) => [i ? word(first) : first, ...rest.map(word)].join(" ")).join(" \\\n  ");
}

export function curl(settings, messages, address, withKey) {
  const lines = [`curl ${word(`${address}v1/chat/completions`)}`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push('-H "Authorization: Bearer $PRONGHORN_API_KEY"');
  lines.push(`-d ${word(JSON.stringify(body(settings, messages), null, 2))}`);
  return lines.join(" \\\n  ");
}

export function python(settings, messages, address, withKey) {
  const { pronghorn, ...rest } = body(settings, messages);
  const given = Object.entries(rest).map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  if (pronghorn) given.push(`    extra_body=${literal({ pronghorn }, 1)},`);
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${address}v1`)}, api_key=${withKey ? 'os.environ["PRONGHORN_API_KEY"]' : '"none"'})`,
    "answer = client.chat.completions.create(",
    ...given,
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}

/** JSON-like data as Python writes it; what is long goes over several lines. */
function literal(value, depth = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const items = list
    ? value.map((v) => literal(v, depth + 1))
    : Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${literal(v, depth + 1)}`);
  const [open, close] = list ? "[]" : "{}";
  const flat = open + items.join(", ") + close;
  if (flat.length <= 72 && !flat.includes("\n")) return flat;
  const pad = "    ".repeat(depth);
  return `${open}\n${items.map((i) => `${pad}    ${i},\n`).join("")}${pad}${close}`;
}
