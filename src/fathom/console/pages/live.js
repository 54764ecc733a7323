// What /metrics say, every two seconds.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { Chart } from "./chart.js";

const EVERY_MS = 2000;
const large = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const number = (value) => (value >= 10 ? large : small).format(value);
const percent = (value) => `${(100 * value).toFixed(0)} %`;

export class Live {
  constructor() {
    this.metrics = false;
    this.paused = false;
    this.points = [];
    this.charts = {
      requests: new Chart("Requests per second", { format: number }),
      latency: new Chart("Latency in the server, ms", { format: number }),
      depths: new Chart("Answers by depth", { stacked: true, format: percent, top: 1 }),
      queue: new Chart("Requests waiting and calls in flight", { format: number }),
      errors: new Chart("Errors per second", { format: number }),
      lowered: new Chart("Answers that a deadline made shallower", { format: percent, top: 1 }),
    };
    byId("charts").append(...Object.values(this.charts).map(({ figure }) => figure));
    byId("pause").addEventListener("click", () => this.pause());
    new ResizeObserver(() => { if (!byId("live").hidden) this.draw(); }).observe(byId("charts"));
  }

  enter() {
    byId("pause").hidden = byId("charts").hidden = !this.metrics;
    if (!this.metrics) {
      byId("live-status").textContent =
        "The console was started without the server's metrics. Start the server with --metrics-port 9464, and the " +
        "console with --metrics-url http://127.0.0.1:9464/metrics.";
      return;
    }
    this.round = Symbol("round");
    this.poll(this.round);
  }

  leave() {
    this.round = null;
  }

  pause() {
    this.paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    this.say(this.paused ? "Paused" : "");
  }

  async poll(round) {
    while (round === this.round) {
      if (!this.paused && !document.hidden) await this.read();
      await new Promise((resume) => setTimeout(resume, EVERY_MS));
    }
  }

  async read() {
    try {
      const { points } = await api.live();
      if (this.paused) return;
      this.points = points;
      this.say(this.points.length ? "" : "Two readings make the first point…");
      this.draw();
    } catch (error) {
      this.say(error.message, "status error");
    }
  }

  /** Only what is new is said: a status that is set again would be read out every two seconds. */
  say(text, kind = "status") {
    const status = byId("live-status");
    if (status.textContent === text) return;
    status.className = kind;
    status.textContent = text;
  }

  draw() {
    const now = this.points.at(-1)?.unix_s ?? Date.now() / 1000;
    const series = (name, value) => ({
      name, points: this.points.map((point) => ({ time: point.unix_s, value: value(point) })) });
    const keys = (field) => [...new Set(this.points.flatMap((point) => Object.keys(point[field])))];
    const depths = keys("depths").sort((a, b) => a - b);
    const errors = keys("errors").sort();
    const { charts } = this;
    charts.requests.draw([series("requests", (point) => point.requests)], now);
    charts.latency.draw([series("p50", (point) => point.p50_ms), series("p99", (point) => point.p99_ms)], now);
    charts.depths.draw(depths.map((depth) => series(`depth ${depth}`, (point) =>
      (Object.keys(point.depths).length ? point.depths[depth] ?? 0 : null))), now);
    charts.queue.draw([series("waiting", (point) => point.queued), series("in flight", (point) => point.in_flight)], now);
    charts.lowered.draw([series("of all answers", (point) => point.lowered)], now);
    charts.errors.draw((errors.length ? errors : ["none"]).map((status) =>
      series(status, (point) => point.errors[status] ?? 0)), now);
  }
}
