// The settings and their equivalents on a command line.

import { address, get, key } from "./api.js";
import { DEFAULTS, curl, python, shell, spec } from "./command.js";
import { $, copy, el } from "./dom.js";

const STORE = "pronghorn.settings";
const OWN_FIELD = ["temperature", "top-p", "json"]; // methods that the form has as fields of their own

export class Settings {
  #chosen = {}; // "slot.name" -> {option: text}
  #methods = [];
  #prompt = () => "";

  /** prompt(): the message that the commands should carry; trouble: as in Live. */
  constructor(prompt, trouble) {
    this.#prompt = prompt;
    this.trouble = trouble;
    const stored = load();
    this.#chosen = stored.chosen ?? {};
    this.wanted = stored.model ?? "";
    this.#fill(stored);
    $("s-key").value = key.get();
    $("settings").addEventListener("submit", (event) => event.preventDefault());
    $("settings").addEventListener("input", () => this.changed());
    $("s-key").addEventListener("change", () => {
      key.set($("s-key").value.trim());
      this.reload();
    });
    $("s-model").addEventListener("change", () => {
      this.wanted = $("s-model").value;
      this.reload(); // another model may take other methods
    });
    $("s-reset").addEventListener("click", () => {
      this.#chosen = {};
      this.#fill({});
      this.#drawMethods();
      this.changed();
    });
    for (const radio of document.querySelectorAll('[name="same"]')) radio.addEventListener("change", () => this.write());
    $("same-copy").addEventListener("click", () => copy($("same").textContent, $("same-copy")));
    this.changed();
  }

  #fill(stored) {
    $("s-temperature").value = stored.temperature ?? DEFAULTS.temperature;
    $("s-top-p").value = stored.topP ?? DEFAULTS.topP;
    $("s-max-tokens").value = stored.maxTokens ?? DEFAULTS.maxTokens;
    $("s-seed").value = stored.seed === undefined ? DEFAULTS.seed : (stored.seed ?? "");
    $("s-system").value = stored.system ?? "";
    $("s-schema").value = stored.schemaText ?? "";
  }

  /** Ask the server for its models and methods. */
  async reload() {
    try {
      const models = (await get("v1/models")).data ?? [];
      this.#drawModels(models.map((m) => m.id));
      const model = $("s-model").value;
      const offered = (await get(`pronghorn/methods?model=${encodeURIComponent(model)}`)).methods ?? [];
      if (model !== $("s-model").value) return; // chosen anew meanwhile
      this.#methods = offered.filter((m) => !OWN_FIELD.includes(m.name));
      const names = this.#methods.map((m) => `${m.slot}.${m.name}`);
      for (const name of Object.keys(this.#chosen)) if (!names.includes(name)) delete this.#chosen[name];
      this.#drawMethods();
      this.trouble(null);
    } catch (failure) {
      this.trouble(failure, () => this.reload());
    }
    this.changed();
  }

  #drawModels(ids) {
    $("s-model").replaceChildren(...ids.map((id) => el("option", { value: id, text: id })));
    if (ids.includes(this.wanted)) $("s-model").value = this.wanted;
    $("at").textContent = $("s-model").value;
  }

  #drawMethods() {
    const slots = new Map();
    for (const m of this.#methods) slots.set(m.slot, [...(slots.get(m.slot) ?? []), m]);
    $("methods").replaceChildren(...[...slots].map(([slot, methods]) =>
      el("fieldset", { class: "slot" }, el("legend", { text: slot }), ...methods.map((m) => this.#drawMethod(m)))));
  }

  #drawMethod(m) {
    const name = `${m.slot}.${m.name}`;
    const box = el("input", { type: "checkbox", id: `m-${name}`, value: name });
    const options = el("div", { class: "options" }, ...m.options.map((o) => this.#drawOption(name, o)));
    box.checked = name in this.#chosen;
    options.hidden = !box.checked || !m.options.length;
    box.addEventListener("change", () => {
      if (box.checked) {
        if (!m.several) for (const other of this.#methods) if (other.slot === m.slot) delete this.#chosen[`${other.slot}.${other.name}`];
        this.#chosen[name] = {};
      } else delete this.#chosen[name];
      this.#drawMethods();
      this.changed();
      $(box.id).focus();
    });
    return el("div", { class: "method" },
      el("label", { class: "check" }, box, el("span", { text: m.name }), el("span", { class: `badge ${m.guarantee}`, text: m.guarantee })),
      el("p", { class: "about", text: m.about }), options);
  }

  #drawOption(name, o) {
    const given = this.#chosen[name]?.[o.name] ?? "";
    const field = o.kind === "bool"
      ? el("select", {}, ...["", "true", "false"].map((v) => el("option", { value: v, text: v || `default (${o.default})` })))
      : el("input", { type: "text", placeholder: o.default, required: o.required, spellcheck: "false", inputmode: o.kind === "int" ? "numeric" : o.kind === "float" ? "decimal" : undefined });
    field.value = given;
    field.addEventListener("input", () => {
      const options = this.#chosen[name];
      if (field.value === "") delete options[o.name];
      else options[o.name] = field.value;
    });
    return el("label", { class: "field" }, o.about ? `${o.name}: ${o.about}` : o.name, field);
  }

  /** The schema, null for none. Throws with a sentence. */
  get #schema() {
    const text = $("s-schema").value.trim();
    try {
      return text ? JSON.parse(text) : null;
    } catch (error) {
      throw new Error(`The JSON schema is not JSON: ${error.message}`);
    }
  }

  /** The methods as `command.js` takes them. Throws with a sentence when one cannot be written. */
  get #use() {
    if (!this.#methods.length && Object.keys(this.#chosen).length) throw new Error("The server has not told its methods yet.");
    return this.#methods.filter((m) => `${m.slot}.${m.name}` in this.#chosen).map((m) => {
      const options = this.#chosen[`${m.slot}.${m.name}`];
      const missing = m.options.find((o) => o.required && !(o.name in options));
      if (missing) throw new Error(`The method ${m.name} needs its ${missing.name}.`);
      const one = { slot: m.slot, name: m.name, options };
      spec(one);
      return one;
    });
  }

  /** What `command.js` takes. Throws with a sentence when the schema or a method cannot be sent. */
  get value() {
    const [schema, use] = [this.#schema, this.#use];
    return {
      model: $("s-model").value || this.wanted,
      ...this.#numbers,
      system: $("s-system").value,
      schema,
      use,
    };
  }

  get #numbers() {
    return {
      temperature: within("s-temperature", DEFAULTS.temperature),
      topP: within("s-top-p", DEFAULTS.topP),
      maxTokens: Math.round(within("s-max-tokens", DEFAULTS.maxTokens)),
      seed: $("s-seed").value === "" ? null : Math.round(within("s-seed", DEFAULTS.seed)),
    };
  }

  changed() {
    const fine = complaint($("s-schema-note"), () => this.#schema);
    $("s-schema").setAttribute("aria-invalid", String(!fine));
    complaint($("methods-note"), () => this.#use);
    const n = Object.keys(this.#chosen).length;
    $("methods-count").textContent = n ? `(${n})` : "";
    $("at").textContent = $("s-model").value;
    save({ ...this.#numbers, chosen: this.#chosen, model: this.wanted, schemaText: $("s-schema").value, system: $("s-system").value });
    this.write();
  }

  /** Write the command that does the same. */
  write() {
    let settings;
    try {
      settings = this.value;
    } catch {
      return;
    }
    const messages = this.#prompt();
    const how = document.querySelector('[name="same"]:checked').value;
    const notes = [];
    if (settings.seed === null && settings.temperature > 0) notes.push("Each answer here draws a seed of its own.");
    let text;
    if (how === "cli") {
      if (messages.length > 1) notes.push("It answers the last message alone, without the chat before it.");
      text = shell(settings, messages.at(-1).content);
    } else {
      const write = how === "curl" ? curl : python;
      text = write(settings, messages, address(""), Boolean(key.get()));
    }
    $("same").textContent = text;
    $("same-what").textContent = { cli: "pronghorn run", curl: "curl", python: "Python, with the openai package" }[how];
    $("same-note").textContent = notes.join(" ");
    $("same-note").hidden = !notes.length;
  }
}

/** Say beside a field why it cannot be sent; whether it can. */
function complaint(note, read) {
  let text = "";
  try {
    read();
  } catch (error) {
    text = error.message;
  }
  note.textContent = text;
  note.hidden = !text;
  return !text;
}

/** A field's number inside its bounds; what is not a number is the default. */
function within(id, otherwise) {
  const field = $(id);
  const value = field.valueAsNumber;
  return Number.isFinite(value) ? Math.max(Number(field.min), Math.min(Number(field.max), value)) : otherwise;
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

function save(value) {
  try {
    localStorage.setItem(STORE, JSON.stringify(value));
  } catch {
    // Settings then last as long as the tab.
  }
}
