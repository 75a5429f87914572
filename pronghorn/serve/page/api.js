// Talking to the server this page came from, and to no other.

const BASE = new URL("../", import.meta.url);
const KEY = "pronghorn.key";

/** What went wrong, as a sentence, and the way out: "key", "retry", "settings". */
export class Failure extends Error {
  constructor(message, way = "retry", status = 0) {
    super(message);
    this.way = way;
    this.status = status;
  }
}

/** The API key lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const address = (path) => new URL(path, BASE).href;

async function ask(path, init) {
  const headers = { Accept: "application/json", ...init.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(address(path), { ...init, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Failure("The server takes long to answer. Try again.");
    throw new Failure("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  throw await refusal(answer);
}

async function refusal(answer) {
  let said = "";
  try {
    const body = await answer.json();
    said = body?.error?.message ?? body?.detail ?? "";
    if (typeof said !== "string") said = JSON.stringify(said);
    said = sentence(said);
  } catch {
    // Not JSON: the status has to do.
  }
  const wait = Number(answer.headers.get("Retry-After"));
  const when = wait > 0 ? ` Try again in ${Math.ceil(wait)} s.` : "";
  const { status } = answer;
  if (status === 401 || status === 403) {
    const what = key.get() ? "The server does not accept this API key." : "The server asks for an API key.";
    return new Failure(what, "key", status);
  }
  if (status === 429) return new Failure((said || "Too many requests at once.") + when, "retry", status);
  if (status === 503) return new Failure((said || "The server is busy or about to stop.") + when, "retry", status);
  if (status < 500) return new Failure(said || `The server refused the request (${status}).`, "settings", status);
  return new Failure(said || `The server failed (${status}).`, "retry", status);
}

/** What the server says begins small and has no full stop. */
const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** JSON from a GET; gives up after some seconds. */
export const get = (path) => fetched(path, {});

/** JSON for JSON. */
export const post = (path, body) =>
  fetched(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

async function fetched(path, init) {
  const answer = await ask(path, { ...init, signal: AbortSignal.timeout(8000) });
  try {
    return await answer.json();
  } catch {
    throw new Failure("The server's answer was not JSON.");
  }
}

/** The chunks of a streamed chat completion. Throws a Failure when the stream ends before the answer does. */
export async function* chat(body, signal) {
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Failure("The server sent something that is not JSON. The answer may be incomplete.");
    }
    if (chunk.error) throw new Failure(sentence(chunk.error.message) || "The server gave up on this answer.");
    yield chunk;
  }
  throw new Failure("The connection ended before the answer did.");
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Failure("The connection broke before the answer was complete.");
      }
      if (part.done) return;
      const lines = (rest + decoder.decode(part.value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
