// A small curve of the last two minutes.

import { el, svg } from "./dom.js";

const SECONDS = 120;
const HEIGHT = 72;
const WIDTH = 240; // stretched to the room there is

export class Chart {
  constructor(title, format) {
    this.title = title;
    this.format = format;
    this.now = el("b");
    this.top = el("span");
    this.area = svg("path", { class: "area" });
    this.curve = svg("path", { class: "curve" });
    const line = (y) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      line(0.5), line(HEIGHT / 2), line(HEIGHT - 0.5), this.area, this.curve);
    this.node = el("figure", { class: "chart" },
      el("figcaption", {}, title, this.now),
      this.drawing,
      el("div", { class: "scale", "aria-hidden": "true" }, el("span", { text: "2 min ago" }), this.top, el("span", { text: "now" })));
  }

  /** points: [time in seconds, value], oldest first. */
  show(points) {
    const now = points.at(-1)?.[0] ?? 0;
    const seen = points.filter(([t, v]) => t >= now - SECONDS && Number.isFinite(v));
    const most = Math.max(...seen.map(([, v]) => v), 0);
    const x = (t) => (WIDTH * (1 - (now - t) / SECONDS)).toFixed(2);
    const y = (v) => (HEIGHT - 1 - (most ? (v / most) * (HEIGHT - 8) : 0)).toFixed(2);
    const path = seen.map(([t, v], i) => `${i ? "L" : "M"}${x(t)} ${y(v)}`).join("");
    this.curve.setAttribute("d", path);
    this.area.setAttribute("d", path && `${path}L${x(now)} ${HEIGHT}L${x(seen[0][0])} ${HEIGHT}Z`);
    const last = this.format(seen.at(-1)?.[1] ?? 0);
    this.now.textContent = last;
    this.top.textContent = `most ${this.format(most)}`;
    this.drawing.setAttribute("aria-label", `${this.title}: now ${last}, at most ${this.format(most)} in two minutes`);
  }
}
