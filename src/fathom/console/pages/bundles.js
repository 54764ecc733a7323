// What GetBundle says: quality by depth, routing and its certificate, feedback, drift, profiles.

import * as api from "./api.js";
import { byId, card, el, facts, fill, svg, table } from "./dom.js";

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const figure = (value) => value.toFixed(4);

export class Bundles {
  constructor() {
    this.metric = "ndcg@10";
    byId("refresh").addEventListener("click", () => this.read());
    byId("shown").addEventListener("change", () => this.read());
  }

  enter() {
    this.read();
  }

  async read() {
    const status = byId("bundle-status");
    try {
      const told = await api.bundle(byId("shown").value);
      fill(byId("shown"), told.bundles.map((name) => [name, name]));
      byId("shown-field").hidden = told.bundles.length < 2;
      byId("bundle-cards").replaceChildren(
        about(told), routing(told), this.quality(told), feedback(told.routing), drift(told.drift), profiles(told));
      status.className = "status";
      status.textContent = `${told.name}, version ${told.version}, read at ${new Date().toLocaleTimeString()}`;
    } catch (error) {
      byId("bundle-cards").replaceChildren();
      status.className = "status error";
      status.textContent = error.message;
    }
  }

  quality({ depths }) {
    const metrics = [...new Set(depths.flatMap(({ quality }) => Object.keys(quality)))].sort();
    if (!metrics.includes(this.metric)) [this.metric] = metrics;
    const place = el("div", { class: "quality" });
    const draw = () => place.replaceChildren(qualityTable(depths, this.metric));
    const choose = el("select", { id: "metric", change: () => { this.metric = choose.value; draw(); } },
      metrics.map((name) => el("option", { value: name, selected: name === this.metric }, name)));
    if (!metrics.length) return card("Quality", el("p", {}, "The bundle says nothing of its quality."));
    draw();
    return card("Quality", el("p", {}, el("label", { for: "metric" }, "Metric"), " ", choose), place);
  }
}

function about(told) {
  return card("Bundle", facts([
    ["Name", told.name],
    ["Version", el("code", {}, told.version)],
    ["Items", told.items.toLocaleString("en")],
    ["History", `the newest ${told.max_history} items${told.uses_timestamps ? ", with their times" : ""}`],
    ["Layers chosen by", told.strategy],
    ["Precision", told.precision],
    ["Engine", told.engine],
    ["Transport", told.transport],
  ]));
}

function routing({ routing: told, default_profile: profile }) {
  const parts = [...told.policy.matchAll(/(\d+(?:\.\d+)?) % depth (\d+)/g)]
    .map(([, share, depth]) => ({ share: Number(share), depth: Number(depth) }));
  const promise = told.certified &&
    el("p", {}, told.kind === "agreement"
      ? `At least ${percent(1 - told.eps)} of the deepest depth's top 10 is given; `
      : `NDCG@10 is at least ${percent(1 - told.eps)} of the deepest depth's; `,
    `wrong with probability at most ${percent(told.delta)}.`);
  return card(told.certified ? "Certificate" : "Routing",
    el("p", { class: "policy" }, told.policy), parts.length > 0 && shares(parts), promise,
    el("p", { class: "help" }, `For requests that name no profile (${profile}).`));
}

function shares(parts) {
  let x = 0;
  const bars = parts.map(({ share, depth }, i) => {
    const bar = svg("rect", { x, y: 0, width: share, height: 8, class: `area s${i % 6}` });
    x += share;
    return svg("g", {}, svg("title", {}, `depth ${depth}: ${share} %`), bar);
  });
  const names = parts.map(({ share, depth }, i) =>
    el("li", {}, swatch(i), `depth ${depth}`, el("strong", {}, `${share} %`)));
  return el("div", {}, svg("svg", {
    class: "shares", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, ...bars),
  el("ul", { class: "legend" }, names));
}

const swatch = (i) => svg("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" },
  svg("rect", { width: 12, height: 12, rx: 2, class: `area s${i % 6}` }));

function qualityTable(depths, metric) {
  const known = depths.filter(({ quality }) => metric in quality);
  const ends = known.flatMap(({ quality }) => [quality[metric].low, quality[metric].high]);
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const rows = known.map(({ depth, quality }) => {
    const { value, low, high } = quality[metric];
    return [depth ? `${depth}` : "0 (counting)", figure(value), `${figure(low)} to ${figure(high)}`,
      interval(value, low, high, least, most)];
  });
  return table(`${metric} on held-out items, with 95 % intervals over users`,
    ["Depth", "Value", "Interval", el("span", { class: "spoken" }, "Drawn")], rows, [1, 2]);
}

function interval(value, low, high, least, most) {
  const place = (each) => 4 + 112 * ((each - least) / (most - least || 1));
  return svg("svg", { class: "interval", viewBox: "0 0 120 14", "aria-hidden": "true" },
    svg("line", { x1: place(low), x2: place(high), y1: 7, y2: 7 }),
    svg("circle", { cx: place(value), cy: 7, r: 4 }));
}

function feedback(told) {
  if (!told.certified) return card("Feedback", el("p", {}, "Without a certificate there is nothing to watch."));
  const samples = Number(told.feedback_samples);
  const again = Number(told.recertification_needed);
  return card("Feedback",
    state(told.alarm, "The certificate no longer fits; requests get the deepest depth.", "No alarm."),
    facts([
      ["Requests compared with the deepest depth", samples.toLocaleString("en")],
      ["Their agreement", samples ? percent(told.feedback_agreement, 1) : "none yet"],
      ["Expected at least", percent(told.expected_agreement, 1)],
      ...(told.recertification_attempts || again ? [
        ["Certified again", `${told.recertified} of ${told.recertification_attempts} attempts`],
        ["Requests for the next attempt", `${told.recertification_samples} of ${again}`]] : []),
    ]));
}

function drift({ samples, features }) {
  const rows = features.map(({ name, mean_rank: rank, alarm }) =>
    [name, Number(samples) ? rank.toFixed(2) : "–", rankPlace(rank, Number(samples)), alarm ? "drifts" : "no alarm"]);
  const alarms = features.filter(({ alarm }) => alarm).length;
  if (!features.length) return card("Drift", el("p", {}, "The server does not compare requests with its training data."));
  return card("Drift",
    state(alarms > 0, `${alarms} of ${features.length} features drift.`, "No drift has been shown."),
    table(`Mean rank of live requests among the training data, 0.5 where alike; compared: ${Number(samples).toLocaleString("en")}`,
      ["Feature", "Rank", el("span", { class: "spoken" }, "Drawn"), "State"], rows, [1]));
}

function rankPlace(rank, samples) {
  return svg("svg", { class: "interval", viewBox: "0 0 120 14", "aria-hidden": "true" },
    svg("rect", { x: 52, y: 2, width: 16, height: 10, class: "band" }),
    svg("line", { x1: 20, x2: 100, y1: 7, y2: 7, class: "thin" }),
    samples > 0 && svg("circle", { cx: 20 + 80 * rank, cy: 7, r: 4 }));
}

const state = (alarm, bad, good) =>
  el("p", { class: alarm ? "state alarm" : "state fine" }, alarm ? "Alarm: " : "", alarm ? bad : good);

function profiles({ profiles: known, default_profile: chosen }) {
  const rows = known.map(({ name, tier, depths }) =>
    [name === chosen ? `${name} (default)` : name, tier, depths.join(", ")]);
  return card("Profiles", table("Device profiles that requests may name", ["Profile", "Tier", "Depths"], rows));
}
