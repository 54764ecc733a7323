// Elements are made of nodes and texts, never of markup, so whatever a title holds is shown as it is.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element: attributes by name, functions as listeners, then its children. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Text that is read out, and not shown. */
export const spoken = (text) => el("span", { class: "spoken" }, text);

/** A table of texts or nodes; the first cell of each row heads it. `numbers`: columns that are set to the right. */
export function table(caption, heads, rows, numbers = []) {
  const cls = (column) => (numbers.includes(column) ? "number" : null);
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: cls(i) }, head)))),
    el("tbody", {}, rows.map(([first, ...rest]) =>
      el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell, i) => el("td", { class: cls(i + 1) }, cell))))),
  );
}

/** Names and values. */
export function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** A part of a view under a heading of its own. */
export function card(title, ...children) {
  return el("section", { class: "card" }, el("h2", {}, title), ...children);
}

/** The choices of a select; keeps what is chosen where it still is one. */
export function fill(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** How many of 16 layers run, as strata; a picture beside a text that says the same. */
export function gauge(depth, deepest) {
  const layers = Math.max(deepest, 1);
  const bars = Array.from({ length: layers }, (_, i) =>
    svg("rect", { x: 0, y: i * 3, width: 26, height: 2, rx: 1, class: i < depth ? "on" : "off" }));
  return svg("svg", { class: "gauge", viewBox: `0 0 26 ${layers * 3}`, "aria-hidden": "true" }, ...bars);
}
