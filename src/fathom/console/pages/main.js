// Shows one view at a time, named by the address's fragment, and which server this is.

import * as api from "./api.js";
import { Bundles } from "./bundles.js";
import { byId } from "./dom.js";
import { Live } from "./live.js";
import { Try } from "./try.js";

const views = { try: new Try(), bundles: new Bundles(), live: new Live() };
let shown = null;

function show({ focus }) {
  if (location.hash === "#main") return;
  const name = location.hash.slice(1) in views ? location.hash.slice(1) : "try";
  if (name === shown) return;
  if (shown) views[shown].leave?.();
  shown = name;
  for (const each of Object.keys(views)) byId(each).hidden = each !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(`${name}-title`);
  document.title = `${title.textContent} – Fathom console`;
  if (focus) title.focus();
  views[name].enter();
}

window.addEventListener("hashchange", () => show({ focus: true }));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

try {
  const { target, metrics } = await api.server();
  views.live.metrics = metrics;
  byId("target").textContent = `Server ${target}`;
} catch (error) {
  byId("target").textContent = error.message;
}
show({ focus: false });
