/**
 * What was said: turns and their replies, what is sent back to the server as history, and the copy that
 * survives a reload. Knows neither the network nor the document.
 *
 * A turn goes waiting -> writing -> (choosing ->) settled, or failed from the first two.
 */

/**
 * @typedef {object} Reply
 * @property {string|null} id
 * @property {string} text what stands in the conversation, the user's own edit included
 * @property {boolean} ended
 * @property {string|null} finish why it ended, in the server's word
 * @property {{value: "up"|"down", feedbackId: string}|null} thumb
 * @property {boolean} edited
 *
 * @typedef {object} Turn
 * @property {string} question
 * @property {"waiting"|"writing"|"choosing"|"settled"|"failed"} state
 * @property {Reply[]} replies
 * @property {string|null} comparisonId
 * @property {number} chosen the reply that the conversation goes on from
 * @property {"first"|"second"|"tie"|"both_bad"|"skip"|null} pick
 * @property {boolean} stopped the user cut it short
 * @property {boolean} truncated the oldest messages no longer fitted
 * @property {{message: string, retryAfter: number|null, passes: boolean}|null} trouble
 *
 * @typedef {object} Swap
 * @property {number} after how many turns stood before it
 * @property {string} words
 */

const PLACE = "hone.conversation";

/** @returns {Reply} */
export function newReply() {
  return { id: null, text: "", ended: false, finish: null, thumb: null, edited: false };
}

/** @param {string} question @returns {Turn} */
export function newTurn(question) {
  return {
    question,
    state: "waiting",
    replies: [],
    comparisonId: null,
    chosen: 0,
    pick: null,
    stopped: false,
    truncated: false,
    trouble: null,
  };
}

/**
 * Take in one chunk of a streamed answer.
 * @param {Turn} turn
 * @param {any} chunk
 */
export function takeChunk(turn, chunk) {
  turn.state = "writing";
  if (chunk.hone) {
    turn.comparisonId = chunk.hone.comparison_id;
    turn.truncated = chunk.hone.truncated;
    while (turn.replies.length < (turn.comparisonId ? 2 : 1)) turn.replies.push(newReply());
  }
  for (const choice of chunk.choices ?? []) {
    while (turn.replies.length <= choice.index) turn.replies.push(newReply());
    const reply = turn.replies[choice.index];
    reply.id = choice.reply_id;
    reply.text += choice.delta.content ?? "";
    if (choice.finish_reason) {
      reply.finish = choice.finish_reason;
      reply.ended = true;
    }
  }
}

/**
 * The stream is over: a pair waits for a choice, unless the server withdrew it because both say the same.
 * @param {Turn} turn
 */
export function endTurn(turn) {
  for (const reply of turn.replies) reply.ended = true;
  turn.state = turn.comparisonId && turn.replies.length === 2 ? "choosing" : "settled";
}

/** The user pressed stop: what is there stays, and is neither compared nor rated. @param {Turn} turn */
export function stopTurn(turn) {
  endTurn(turn);
  Object.assign(turn, { state: "settled", stopped: true, comparisonId: null });
}

/** @param {Turn} turn @param {Turn["pick"]} pick */
export function settle(turn, pick) {
  Object.assign(turn, { state: "settled", pick, chosen: pick === "second" ? 1 : 0 });
}

/** @param {Turn} turn @returns {Reply|undefined} the reply that stands */
export function standing(turn) {
  return turn.replies[turn.chosen];
}

export class Conversation {
  /** @type {Turn[]} */
  turns = [];
  /** @type {string|null} the server's own name for it */
  id = null;
  /** @type {number|null} the version that served when this conversation last looked */
  version = null;
  /** @type {Swap[]} what was said of swaps, in the order of the turns */
  swaps = [];

  /** @param {Storage|null} storage where the copy is kept; null keeps none */
  constructor(storage) {
    this.storage = storage;
    this.#restore();
  }

  get last() {
    return this.turns.at(-1);
  }

  get isWriting() {
    return this.last?.state === "waiting" || this.last?.state === "writing";
  }

  /**
   * The whole conversation before `turn` and its question, as the server wants it. A turn without an answer
   * is left out, so that roles keep alternating.
   * @param {Turn} turn
   */
  messagesFor(turn) {
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    const answered = before.filter((earlier) => earlier.state === "settled" && standing(earlier)?.text);
    return [
      ...answered.flatMap((earlier) => [
        { role: "user", content: earlier.question },
        { role: "assistant", content: standing(earlier).text },
      ]),
      { role: "user", content: turn.question },
    ];
  }

  /**
   * Look at the version that serves. Whether it is another one than at the last look; at the first there is nothing
   * to compare with.
   * @param {number} version
   */
  meets(version) {
    const isOther = this.version !== null && this.version !== version;
    this.version = version;
    return isOther;
  }

  /** Keep what is said of a swap behind the last turn, in place of what was said there. @param {string} words */
  noteSwap(words) {
    const after = this.turns.length;
    this.swaps = [...this.swaps.filter((swap) => swap.after !== after), { after, words }];
  }

  /** Begin anew; the copy goes too. */
  clear() {
    this.turns = [];
    this.swaps = [];
    this.id = null;
    this.save();
  }

  /** Keep a copy. A full or forbidden storage is no reason to stop talking. */
  save() {
    try {
      const { id, turns, version, swaps } = this;
      this.storage?.setItem(PLACE, JSON.stringify({ id, turns, version, swaps }));
    } catch {
      this.storage = null;
    }
  }

  /** A copy made while a reply was being written: the page left, so the server stopped writing. */
  #restore() {
    try {
      const kept = JSON.parse(this.storage?.getItem(PLACE) ?? "null");
      if (!kept) return;
      const turns = kept.turns.map((turn) => ({
        ...newTurn(String(turn.question)),
        ...turn,
        replies: turn.replies.map((reply) => ({ ...newReply(), ...reply, text: String(reply.text) })),
      }));
      for (const turn of turns) if (turn.state === "waiting" || turn.state === "writing") stopTurn(turn);
      this.swaps = (kept.swaps ?? []).map(({ after, words }) => ({ after: Number(after), words: String(words) }));
      this.turns = turns;
      this.id = kept.id ?? null;
      // With nothing said yet, what served at an earlier visit is nobody's business.
      if (turns.length) this.version = kept.version ?? null;
    } catch {
      this.turns = []; // an unreadable copy is worth less than a page that works
    }
  }
}
