/**
 * All turns on the page, in order, and the scrolling. Paints at most once per frame, however fast words come.
 */

import { announce, element } from "./dom.js";
import { standing } from "./conversation.js";
import { TurnView } from "./turn.js";

/**
 * @typedef {object} Acts what a click does; each promise throws Trouble when it did not reach the record
 * @property {(turn: import("./conversation.js").Turn, value: import("./pair.js").Pick, seconds: number|null) => Promise<void>} pick
 * @property {(reply: import("./conversation.js").Reply, value: "up"|"down"|null) => Promise<void>} thumb
 * @property {(reply: import("./conversation.js").Reply, text: string) => Promise<void>} edit
 * @property {(reply: import("./conversation.js").Reply) => Promise<boolean>} copy false when the browser forbids it
 * @property {(turn: import("./conversation.js").Turn) => void} regenerate
 * @property {(turn: import("./conversation.js").Turn) => void} retry
 */

const NEAR_END_PX = 120;

export class Transcript {
  /** @type {Map<import("./conversation.js").Turn, TurnView>} */
  #views = new Map();
  #frame = 0;

  /**
   * @param {HTMLElement} target
   * @param {import("./conversation.js").Conversation} conversation
   * @param {Acts} acts
   */
  constructor(target, conversation, acts) {
    this.target = target;
    this.conversation = conversation;
    this.acts = acts;
  }

  /** Draw everything: at the start, and after the conversation was cleared. */
  drawAll() {
    this.#views.clear();
    this.target.replaceChildren();
    this.#drawSwaps(0);
    this.conversation.turns.forEach((turn, index) => {
      this.#viewOf(turn).draw(turn === this.conversation.last);
      this.#drawSwaps(index + 1);
    });
    this.scrollToEnd();
  }

  /** A swap was noted behind the last turn. What was said there before no longer holds. */
  addSwap() {
    const follows = isNearEnd();
    if (this.target.lastElementChild?.matches(".swap")) this.target.lastElementChild.remove();
    this.#drawSwaps(this.conversation.turns.length);
    if (follows) this.scrollToEnd();
  }

  /** Add the newest turn; the one before it is no longer the last. */
  add(turn) {
    const before = this.conversation.turns.at(-2);
    if (before) this.#viewOf(before).draw(false);
    this.#viewOf(turn).draw(true);
    this.scrollToEnd();
  }

  /** A turn's state changed. */
  draw(turn) {
    if (!this.conversation.turns.includes(turn)) return; // cleared while it was being written
    const follows = isNearEnd();
    this.#viewOf(turn).draw(turn === this.conversation.last);
    if (follows) this.scrollToEnd();
    tell(turn);
  }

  /** Words came in. */
  paint(turn) {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const follows = isNearEnd();
      this.#views.get(turn)?.paint();
      if (follows) this.scrollToEnd();
    });
  }

  focus(turn) {
    this.#views.get(turn)?.focus();
  }

  scrollToEnd() {
    scrollTo({ top: document.documentElement.scrollHeight });
  }

  /** Screen readers hear of a swap from the status line; here it is only to be found. */
  #drawSwaps(after) {
    for (const swap of this.conversation.swaps.filter((one) => one.after === after)) {
      this.target.append(element("p", { className: "note swap narrow" }, swap.words));
    }
  }

  #viewOf(turn) {
    const known = this.#views.get(turn);
    if (known) return known;
    const view = new TurnView(turn, this.acts);
    this.#views.set(turn, view);
    this.target.append(view.element);
    return view;
  }
}

/** Whether the reader follows the end; who has scrolled up is left where they read. */
function isNearEnd() {
  const { scrollHeight } = document.documentElement;
  return scrollY + innerHeight > scrollHeight - NEAR_END_PX;
}

/** Finished replies are read out once, whole; the stream itself is silent. */
function tell(turn) {
  if (turn.state === "choosing") announce("Two replies are ready. Which is better?");
  if (turn.state === "settled" && !turn.pick) announce(standing(turn)?.text ?? "");
}
