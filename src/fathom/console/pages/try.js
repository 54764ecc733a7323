// One question, answered at every depth, side by side.

import * as api from "./api.js";
import { byId, el, facts, fill, gauge, spoken } from "./dom.js";
import { ItemSearch } from "./search.js";

const listed = (id) => byId(id).value.split(",").map((each) => each.trim()).filter(Boolean);
const ms = (us) => `${(us / 1000).toFixed(us < 10_000 ? 2 : 1)} ms`;

export class Try {
  constructor() {
    this.history = [];
    this.search = new ItemSearch({
      chosen: (item) => this.add([item]),
      ids: (ids) => this.add(ids.map((id) => ({ id, title: "" }))),
      bundle: () => byId("bundle").value,
    });
    byId("ask").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    byId("ask").addEventListener("change", (event) => { if (event.target.name === "kind") this.showKind(); });
    byId("bundle").addEventListener("change", () => this.readBundle());
    this.showHistory();
  }

  enter() {
    if (!this.known) this.readBundle();
  }

  async readBundle() {
    try {
      const told = await api.bundle(byId("bundle").value);
      this.known = told;
      fill(byId("profile"), [["", `${told.default_profile} (the server's)`],
        ...told.profiles.map(({ name, tier }) => [name, `${name} (${tier})`])]);
      fill(byId("bundle"), told.bundles.map((name) => [name, name]));
      byId("bundle-field").hidden = told.bundles.length < 2;
      byId("answer-status").textContent = "";
    } catch (error) {
      this.fail(error);
    }
  }

  get kind() {
    return byId("ask").elements.kind.value;
  }

  showKind() {
    byId("by-history").hidden = this.kind !== "history";
    byId("by-user").hidden = this.kind !== "user";
  }

  add(items) {
    this.history.push(...items);
    this.showHistory();
  }

  remove(i) {
    this.history.splice(i, 1);
    this.showHistory();
    const buttons = byId("history").querySelectorAll("button");
    (buttons[Math.min(i, buttons.length - 1)] ?? byId("search")).focus();
  }

  showHistory() {
    byId("history").replaceChildren(...this.history.map(({ id, title }, i) =>
      el("li", {}, el("span", { class: "name" }, title || id), title && el("span", { class: "id" }, id),
        el("button", { type: "button", "aria-label": `Remove ${title || id}`, click: () => this.remove(i) }, "×"))));
  }

  question() {
    const byUser = this.kind === "user";
    return {
      items: byUser ? [] : this.history.map(({ id }) => id),
      user_id: byUser ? byId("user").value.trim() : "",
      bundle: byId("bundle").value,
      profile: byId("profile").value,
      k: byId("k").valueAsNumber,
      deadline_ms: byId("deadline").valueAsNumber,
      categories: listed("categories"),
      exclude: listed("exclude"),
      block_lists: listed("block-lists"),
      include_seen: byId("include-seen").checked,
      strict: byId("strict").checked,
    };
  }

  async ask() {
    const question = this.question();
    if (this.kind === "user" && !question.user_id) {
      byId("answer-status").textContent = "Give a user id.";
      return byId("user").focus();
    }
    const round = Symbol("round");
    this.round = round;
    byId("answer-status").className = "status";
    byId("answer-status").textContent = "Asking every depth…";
    byId("answers").setAttribute("aria-busy", "true");
    let told;
    try {
      told = await api.recommend(question);
    } catch (error) {
      told = error;
    }
    // Whoever has asked again meanwhile waits for that answer.
    if (round !== this.round) return;
    byId("answers").removeAttribute("aria-busy");
    if (told instanceof Error) {
      byId("answers").replaceChildren();
      this.fail(told);
    } else this.showAnswers(question, told);
  }

  fail(error) {
    byId("answer-status").className = "status error";
    byId("answer-status").textContent = error.message;
  }

  showAnswers(question, { answers, deepest, history }) {
    const titles = new Map(history.map(({ id, title }) => [id, title]));
    this.history = this.history.map(({ id, title }) => ({ id, title: title || titles.get(id) || "" }));
    this.showHistory();
    byId("answers").replaceChildren(...answers.map((answer) => column(question, answer, deepest)));
    const [served] = answers;
    byId("answer-status").textContent = served.error
      ? `As served: ${served.error}`
      : `As served: depth ${served.depth}${shared(served, deepest)}, in ${ms(served.timings.total_us)}. ` +
        `A filled dot marks what is in the top 10 of depth ${deepest}, too.${unknown(served)}`;
  }
}

const shared = ({ agreement }, deepest) =>
  agreement ? `, ${agreement.shared} of ${agreement.of} as at depth ${deepest}` : "";

const unknown = ({ unknown_items: count }) =>
  count ? ` ${count === 1 ? "1 item of the history is" : `${count} items of the history are`} unknown to the bundle.` : "";

function column(question, answer, deepest) {
  const title = answer.asked === null ? "As served" : `Depth ${answer.asked}`;
  const head = el("h2", {}, title);
  if (answer.error) {
    return el("article", { class: "card answer" }, el("header", {}, head), el("p", { class: "error" }, answer.error));
  }
  const name = `${title}: items`;
  const list = el("ol", { class: "items", "aria-label": name }, answer.items.map(item));
  return el(
    "article",
    { class: answer.asked === null ? "card answer served" : "card answer" },
    el("header", {}, head, el("p", { class: "layers" }, gauge(answer.depth, deepest), ran(answer, deepest))),
    answer.agreement && answer.asked !== deepest && agreement(answer.agreement, deepest),
    el("p", { class: "why" }, el("span", { class: "reason" }, answer.reason), " ", answer.why),
    answer.items.length ? list : el("p", {}, "No items."),
    because(question, answer, list),
    timings(answer),
  );
}

const ran = ({ depth }, deepest) => (depth ? `${depth} of ${deepest} layers` : "counts, no layers");

function agreement({ shared, of }, deepest) {
  const dots = Array.from({ length: of }, (_, i) => el("i", { class: i < shared ? "on" : "" }));
  return el("p", { class: "agreement" },
    el("span", { class: "dots", "aria-hidden": "true" }, dots), `${shared} of ${of} as at depth ${deepest}`);
}

function item({ id, title, score, in_deepest: inDeepest }) {
  return el("li", { class: inDeepest ? "shared" : null },
    el("span", { class: "name" }, title || id, inDeepest && spoken(" (in the deepest depth's top 10, too)")),
    el("span", { class: "id" }, spoken("id "), id),
    el("span", { class: "score" }, spoken("score "), score.toFixed(4)));
}

function because(question, answer, list) {
  const button = el("button", { type: "button", class: "quiet" }, "Because of…",
    spoken(` for ${answer.asked === null ? "the answer as served" : `depth ${answer.asked}`}`));
  const status = el("p", { class: "help", role: "status" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    status.textContent = "Asking for reasons…";
    try {
      const { items } = await api.reasons({ ...question, depth: answer.depth });
      const told = showReasons(items, list);
      status.textContent = told ? `Reasons shown for ${told} items` : "No reasons: these items are popular";
    } catch (error) {
      status.textContent = error.message;
      button.disabled = false;
    }
  });
  return el("div", { class: "because" }, answer.items.length > 0 && button, status);
}

function showReasons(items, list) {
  const byItem = new Map(items.map(({ id, reasons }) => [id, reasons]));
  let told = 0;
  for (const row of list.children) {
    const id = row.querySelector(".id").lastChild.textContent;
    const reasons = byItem.get(id) ?? [];
    if (!reasons.length) continue;
    told += 1;
    row.append(el("ul", { class: "reasons" }, reasons.map(({ item_id: due, title, source, amount }) =>
      el("li", {}, title || due, " ", el("span", { class: "id" },
        source === "counting" ? `${Math.round(amount * 100)} % of the count` : `${amount.toFixed(4)} of the score`)))));
  }
  return told;
}

function timings({ timings: spent, round_trip_ms: roundTrip, history_used: used, unknown_items: unknown, ...rest }) {
  const stages = ["select", "queue", "engine", "retrieval"].map((name) => [name, ms(spent[`${name}_us`])]);
  return el("details", { class: "timings" }, el("summary", {}, `${ms(spent.total_us)} in the server`),
    facts([...stages, ["round trip", `${roundTrip.toFixed(2)} ms`],
      ["history", `${used} used, ${unknown} unknown`],
      ["complexity", rest.complexity === null ? "not asked" : rest.complexity.toFixed(3)],
      ["bundle", rest.bundle_version]]));
}
