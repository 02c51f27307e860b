/**
 * One turn on the page: the question, and then one reply, a pair, or what went wrong. Redraws itself when the
 * turn's state changes and only paints words while they stream.
 */

import { element } from "./dom.js";
import { noticeOf } from "./notice.js";
import { PairView } from "./pair.js";
import { ReplyView } from "./reply.js";
import { newReply, standing } from "./conversation.js";

const CHOSEN = {
  first: "You preferred the first of two replies.",
  second: "You preferred the second of two replies.",
  tie: "You found both replies equally good.",
  both_bad: "You found both replies bad.",
  skip: "You skipped the comparison.",
};

export class TurnView {
  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {import("./transcript.js").Acts} acts
   */
  constructor(turn, acts) {
    this.turn = turn;
    this.acts = acts;
    this.answer = element("div", { className: "answer" });
    const title = element("h2", { className: "visually-hidden" }, "You said");
    const words = element("p", { className: "words", dir: "auto" }, turn.question);
    this.question = element("div", { className: "question" }, title, words);
    this.element = element(
      "article",
      { className: "turn", "aria-label": "Turn" },
      this.question,
      element("h2", { className: "visually-hidden" }, "Reply"),
      this.answer,
    );
  }

  /** Draw the answer anew. @param {boolean} isLast only the last turn can be written again */
  draw(isLast) {
    const { turn } = this;
    this.view = this.#isPair() ? new PairView(turn, this.acts) : this.#single(isLast);
    this.answer.replaceChildren(...[this.view?.element, ...this.#notes(isLast)].filter(Boolean));
    for (const part of [this.question, this.answer]) part.classList.toggle("narrow", !this.#isPair());
    this.answer.setAttribute("aria-busy", String(turn.state === "waiting" || turn.state === "writing"));
  }

  paint() {
    this.view?.paint();
  }

  /** Bring the keyboard to what is asked of the user. */
  focus() {
    this.view?.focus?.();
  }

  #isPair() {
    const { turn } = this;
    return turn.replies.length === 2 && (turn.state === "choosing" || (turn.state === "writing" && turn.comparisonId !== null));
  }

  #single(isLast) {
    const { turn } = this;
    const reply = standing(turn) ?? (turn.state === "waiting" ? newReply() : null);
    if (!reply || (turn.state === "failed" && !reply.text)) return null;
    const settled = turn.state === "settled";
    const again = settled && isLast ? () => this.acts.regenerate(turn) : null;
    return new ReplyView(reply, this.acts, { tools: settled, rates: settled && !turn.stopped, again });
  }

  #notes(isLast) {
    const { turn } = this;
    const said = [];
    if (turn.pick) said.push(CHOSEN[turn.pick]);
    if (turn.stopped) said.push("Stopped before its end.");
    if (turn.truncated) said.push("The oldest messages no longer fitted and were left out.");
    const notes = said.map((sentence) => element("p", { className: "note" }, sentence));
    if (turn.trouble && isLast) notes.push(noticeOf(turn.trouble, () => this.acts.retry(turn)));
    else if (turn.trouble) notes.push(element("p", { className: "note" }, turn.trouble.message));
    return notes;
  }
}
