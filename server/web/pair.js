/**
 * Two replies side by side and the question which is better. Nothing can be clicked before both have ended.
 * Sides are as the server numbered them; what a choice does is decided by `acts`.
 */

import { element } from "./dom.js";
import { ReplyView } from "./reply.js";

/** @typedef {"first"|"second"|"tie"|"both_bad"|"skip"} Pick */

/** @type {{value: Pick, key: string, label: string}[]} */
const SIDES = [
  { value: "first", key: "1", label: "First is better" },
  { value: "second", key: "2", label: "Second is better" },
];
/** @type {{value: Pick, key: string, label: string}[]} */
const OTHERS = [
  { value: "tie", key: "t", label: "Tie" },
  { value: "both_bad", key: "b", label: "Both bad" },
  { value: "skip", key: "s", label: "Skip" },
];

export class PairView {
  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {import("./transcript.js").Acts} acts
   */
  constructor(turn, acts) {
    this.turn = turn;
    this.acts = acts;
    this.replies = turn.replies.map((reply) => new ReplyView(reply, acts, { tools: false, rates: false, again: null }));
    const cards = this.replies.map((view, index) => {
      const title = element("h3", {}, index ? "Second reply" : "First reply");
      return element("section", { className: "card", "aria-label": title.textContent }, title, view.element);
    });
    this.choice = turn.state === "choosing" ? this.#choice() : null;
    this.element = element("div", { className: "pair" }, ...cards, this.choice);
  }

  paint() {
    for (const view of this.replies) view.paint();
  }

  /** Bring the keyboard to the question. */
  focus() {
    this.choice?.focus({ preventScroll: true });
  }

  #choice() {
    this.shownAt = performance.now();
    this.problem = element("p", { className: "notice", role: "alert", hidden: true });
    const group = element(
      "div",
      { className: "choice", role: "group", tabIndex: -1, "aria-label": "Which reply is better?" },
      element("h3", { "aria-hidden": "true" }, "Which reply is better?"),
      element("div", { className: "sides" }, ...SIDES.map((side) => this.#button(side))),
      element("div", { className: "others" }, ...OTHERS.map((other) => this.#button(other))),
      this.problem,
    );
    group.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
      const meant = [...SIDES, ...OTHERS].find(({ key }) => key === event.key.toLowerCase());
      if (!meant) return;
      event.preventDefault();
      this.#pick(meant.value);
    });
    return group;
  }

  #button({ value, key, label }) {
    const given = { type: "button", onclick: () => this.#pick(value), "aria-keyshortcuts": key };
    return element("button", given, label, element("kbd", { "aria-hidden": "true" }, key.toUpperCase()));
  }

  async #pick(value) {
    if (this.busy) return;
    this.#setBusy(true);
    // A repeated press after a lost answer must be the very same vote, so its time is taken once.
    this.seconds ??= Math.round((performance.now() - this.shownAt) / 100) / 10;
    try {
      await this.acts.pick(this.turn, value, this.seconds);
    } catch (error) {
      this.problem.textContent = `Your choice was not saved. ${error.message} Please choose again.`;
      this.problem.hidden = false;
      this.#setBusy(false);
    }
  }

  #setBusy(busy) {
    this.busy = busy;
    this.choice.setAttribute("aria-busy", String(busy));
    // Not `disabled`: a disabled button would lose the focus of whoever pressed it with the keyboard.
    for (const button of this.choice.querySelectorAll("button")) button.setAttribute("aria-disabled", String(busy));
  }
}
