// Small charts over the last five minutes: lines, or areas that add up to a whole.

import { el, svg } from "./dom.js";

const LONGEST_S = 300;
const HEIGHT = 150;
const EDGE = { left: 44, right: 10, top: 10, bottom: 22 };
/** Beyond this, two points are not joined. */
const GAP_S = 15;

/** A round number at least as large: 1, 2 or 5 times a power of ten. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((each) => each >= value * 0.999);
}

/** The time that is drawn, in whole minutes. */
function span(series, now) {
  const oldest = Math.min(now, ...series.flatMap(({ points }) => points.slice(0, 1).map(({ time }) => time)));
  return Math.min(LONGEST_S, 60 * Math.max(1, Math.ceil((now - oldest) / 60)));
}

function scales(width, top, now, seconds) {
  const inner = width - EDGE.left - EDGE.right;
  return {
    x: (time) => EDGE.left + inner * (1 - (now - time) / seconds),
    y: (value) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (1 - value / top),
  };
}

function axes(width, { x, y }, top, now, seconds, tick) {
  const lines = [0, top / 2, top].map((value) => [
    svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
    svg("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, tick(value)),
  ]);
  const times = [[seconds, `${seconds / 60} min ago`], [0, "now"]].map(([ago, name]) =>
    svg("text", { x: x(now - ago), y: HEIGHT - 5, "text-anchor": ago ? "start" : "end" }, name));
  return [...lines.flat(), ...times];
}

/** Stretches of points without a gap between them, without those that have no value. */
function stretches(points) {
  const found = [];
  let last = null;
  for (const point of points) {
    if (point.value === null) { last = null; continue; }
    if (last === null || point.time - last.time > GAP_S) found.push([]);
    found.at(-1).push(point);
    last = point;
  }
  return found;
}

function line(points, { x, y }, number) {
  return stretches(points).map((part) => part.length === 1
    ? svg("circle", { class: `dot l${number}`, cx: x(part[0].time), cy: y(part[0].value), r: 2.5 })
    : svg("path", { class: `line l${number}`, d: `M${part.map(({ time, value }) => `${x(time)} ${y(value)}`).join("L")}` }));
}

function areas(series, { x, y }) {
  const times = series[0]?.points.map(({ time }) => time) ?? [];
  const below = times.map(() => 0);
  return series.flatMap(({ points }, number) => {
    const band = points.map(({ time, value }, i) => {
      const low = below[i];
      below[i] += value ?? 0;
      return { time, value: value === null ? null : below[i], low };
    });
    return stretches(band).filter((part) => part.length > 1).map((part) => {
      const upper = part.map(({ time, value }) => `${x(time)} ${y(value)}`);
      const lower = part.map(({ time, low }) => `${x(time)} ${y(low)}`).reverse();
      return svg("path", { class: `area s${number % 6}`, d: `M${[...upper, ...lower].join("L")}Z` });
    });
  });
}

function legend(series, stacked, format) {
  return el("ul", { class: "legend" }, series.map(({ name, points }, number) => {
    const value = points.at(-1)?.value ?? null;
    const mark = stacked
      ? svg("rect", { width: 12, height: 12, rx: 2, class: `area s${number % 6}` })
      : svg("line", { x1: 0, x2: 16, y1: 6, y2: 6, class: `line l${number}` });
    return el("li", {},
      svg("svg", { class: "swatch", viewBox: stacked ? "0 0 12 12" : "0 0 16 12", "aria-hidden": "true" }, mark),
      name, el("strong", {}, value === null ? "–" : format(value)));
  }));
}

/** One chart in its place: a picture, its values of now as a list. Redrawn by `draw` with series of {time, value}. */
export class Chart {
  constructor(title, { stacked = false, format, top = null }) {
    Object.assign(this, { title, stacked, format, top });
    this.picture = el("div", { class: "picture" });
    this.values = el("div", {});
    this.figure = el("figure", { class: "card chart" }, el("figcaption", {}, title), this.picture, this.values);
  }

  draw(series, now) {
    const width = Math.max(this.picture.clientWidth, 200);
    const values = series.flatMap(({ points }) => points.map(({ value }) => value ?? 0));
    const top = this.top ?? ceiling(Math.max(0, ...values));
    const seconds = span(series, now);
    const scale = scales(width, top, now, seconds);
    const drawn = this.stacked ? areas(series, scale) : series.flatMap(({ points }, i) => line(points, scale, i));
    this.picture.replaceChildren(svg("svg",
      { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": this.words(series) },
      ...axes(width, scale, top, now, seconds, this.format), ...drawn));
    this.values.replaceChildren(legend(series, this.stacked, this.format));
  }

  words(series) {
    const told = series.map(({ name, points }) => {
      const value = points.at(-1)?.value ?? null;
      return `${name} ${value === null ? "unknown" : this.format(value)}`;
    });
    return `${this.title}. Now: ${told.join(", ") || "nothing yet"}.`;
  }
}
