/**
 * What the user thinks of replies, on its way to the record. Every vote carries an idempotency key, so that a
 * repeated request never votes twice. Knows no document.
 */

export class Feedback {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
  }

  /**
   * @param {string} comparisonId
   * @param {string} value
   * @param {number|null} seconds how long the choice took
   */
  pick(comparisonId, value, seconds) {
    // The key is made of the choice itself: pressing again after a lost answer repeats the same vote.
    const body = { kind: "pick", comparison_id: comparisonId, value, ...(seconds === null ? {} : { seconds }) };
    return this.#send(body, `${comparisonId}:${value}:${seconds}`);
  }

  /** @param {string} replyId @param {"up"|"down"} value @returns {Promise<string>} the vote's id */
  thumb(replyId, value) {
    return this.#send({ kind: "thumb", reply_id: replyId, value }, freshKey());
  }

  /** @param {string} replyId @param {string} text */
  edit(replyId, text) {
    return this.#send({ kind: "edit", reply_id: replyId, text }, freshKey());
  }

  /** @param {string} feedbackId */
  retract(feedbackId) {
    return this.api.request(`v1/feedback/${encodeURIComponent(feedbackId)}`, { method: "DELETE" });
  }

  /**
   * A hint that nobody waits for: when it is lost, nothing is.
   * @param {string|null} replyId
   * @param {"copy"|"regenerate"} name
   */
  signal(replyId, name) {
    if (replyId) this.#send({ kind: "signal", reply_id: replyId, name }, freshKey()).catch(() => {});
  }

  async #send(body, key) {
    const answer = await this.api.request("v1/feedback", { method: "POST", body, headers: { "Idempotency-Key": key } });
    return (await answer.json()).id;
  }
}

/** `crypto.randomUUID` exists only on secure addresses; a page on a plain one needs keys too. */
function freshKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
