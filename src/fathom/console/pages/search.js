// A combobox that searches items by title, after the pattern of the ARIA Authoring Practices.

import * as api from "./api.js";
import { byId, el } from "./dom.js";

const PAUSE_MS = 150;

export class ItemSearch {
  /** `chosen` gets an item, `ids` gets typed ids; `bundle()` names the bundle that is searched. */
  constructor({ chosen, ids, bundle }) {
    this.chosen = chosen;
    this.ids = ids;
    this.bundle = bundle;
    this.input = byId("search");
    this.list = byId("matches");
    this.status = byId("search-status");
    this.found = [];
    this.active = -1;
    this.input.addEventListener("input", () => this.later());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search(), PAUSE_MS);
  }

  async search() {
    this.running?.abort();
    const text = this.input.value.trim();
    if (!text || text.includes(",")) return this.close();
    this.running = new AbortController();
    try {
      const { items, searched, complete } = await api.items(this.bundle(), text, this.running.signal);
      this.open(items);
      const among = complete ? `${searched} items` : `the ${searched} most popular items`;
      this.status.textContent = items.length ? `${items.length} found among ${among}` : `None among ${among}`;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.close();
      this.status.textContent = `No search: ${error.message}`;
    }
  }

  open(items) {
    this.found = items;
    this.active = -1;
    this.list.replaceChildren(...items.map((item, i) =>
      el("li", {
        id: `match-${i}`,
        role: "option",
        "aria-selected": "false",
        // Before the input loses its focus, and the list with it.
        mousedown: (event) => { event.preventDefault(); this.choose(i); },
      }, el("span", {}, item.title || "no title"), el("span", { class: "id" }, item.id))));
    this.list.hidden = items.length === 0;
    this.input.setAttribute("aria-expanded", String(items.length > 0));
    this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.open([]);
  }

  move(to) {
    const last = this.found.length - 1;
    this.active = to < 0 ? last : to > last ? 0 : to;
    for (const [i, option] of [...this.list.children].entries()) {
      option.setAttribute("aria-selected", String(i === this.active));
      if (i === this.active) option.scrollIntoView({ block: "nearest" });
    }
    this.input.setAttribute("aria-activedescendant", `match-${this.active}`);
  }

  key(event) {
    const open = this.found.length > 0;
    if (event.key === "ArrowDown" && open) this.move(this.active + 1);
    else if (event.key === "ArrowUp" && open) this.move(this.active - 1);
    else if (event.key === "Escape" && open) this.close();
    else if (event.key === "Enter" && this.input.value.trim()) this.enter();
    else return;
    event.preventDefault();
  }

  enter() {
    if (this.active >= 0) return this.choose(this.active);
    const ids = this.input.value.split(",").map((id) => id.trim()).filter(Boolean);
    this.ids(ids);
    this.clear(`${ids.length === 1 ? "1 id" : `${ids.length} ids`} added`);
  }

  choose(i) {
    const item = this.found[i];
    this.chosen(item);
    this.clear(`${item.title || item.id} added`);
  }

  clear(status) {
    this.input.value = "";
    this.close();
    this.status.textContent = status;
  }
}
