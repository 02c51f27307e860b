/**
 * One turn's way to the server and back: asks, feeds the stream into the turn, ends it well or says why not.
 * Knows the chat request; does not know the document.
 */

import { Trouble, troubleOf } from "./api.js";
import { endTurn, newTurn, stopTurn, takeChunk } from "./conversation.js";
import { ConnectionLost, events } from "./stream.js";

const LOST = "The connection was lost before the reply was finished.";

export class Exchange {
  /** @type {AbortController|null} of the turn being written */
  #running = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./conversation.js").Conversation} conversation
   * @param {(turn: import("./conversation.js").Turn, what: "words"|"state") => void} changed told of each change
   */
  constructor(api, conversation, changed) {
    this.api = api;
    this.conversation = conversation;
    this.changed = changed;
  }

  /**
   * Ask for the answer of `turn`, from the start; whatever stood in it is dropped.
   * @param {import("./conversation.js").Turn} turn
   */
  async run(turn) {
    const running = new AbortController();
    this.#running = running;
    Object.assign(turn, newTurn(turn.question));
    this.changed(turn, "state");
    try {
      await this.#read(turn, running.signal);
      if (!running.signal.aborted) endTurn(turn);
    } catch (error) {
      if (!running.signal.aborted) fail(turn, error);
    }
    if (running.signal.aborted) stopTurn(turn);
    if (this.#running === running) this.#running = null;
    this.conversation.save();
    this.changed(turn, "state");
  }

  /** Stop writing. The server notices that nobody listens. */
  stop() {
    this.#running?.abort();
  }

  async #read(turn, signal) {
    const answer = await this.#ask(turn, signal);
    let known = 0;
    for await (const chunk of events(answer.body)) {
      if (signal.aborted) return;
      if (chunk.error) throw troubleOf(chunk.error);
      const before = turn.state;
      takeChunk(turn, chunk);
      this.conversation.id = chunk.hone?.conversation_id ?? this.conversation.id;
      const grew = turn.replies.length !== known || before !== turn.state;
      known = turn.replies.length;
      this.changed(turn, grew ? "state" : "words");
    }
    // A server that is being stopped ends its streams in good order, and the replies halfway.
    if (turn.replies.some(({ finish }) => finish === "cancelled")) throw new ConnectionLost("the server stopped");
  }

  async #ask(turn, signal) {
    const body = {
      model: "default",
      messages: this.conversation.messagesFor(turn),
      stream: true,
      candidates: "auto",
      ...(this.conversation.id ? { conversation_id: this.conversation.id } : {}),
    };
    try {
      return await this.api.request("v1/chat/completions", { method: "POST", body, signal });
    } catch (error) {
      if (error.code !== "unknown_conversation" || !this.conversation.id) throw error;
      this.conversation.id = null; // the server's data was replaced; the words are all here, so go on
      return this.#ask(turn, signal);
    }
  }
}

/**
 * @param {import("./conversation.js").Turn} turn
 * @param {unknown} error
 */
function fail(turn, error) {
  const trouble = error instanceof ConnectionLost ? new Trouble(LOST) : error;
  if (!(trouble instanceof Trouble)) console.error(error); // ours to mend, and the turn must still end
  const known = trouble instanceof Trouble ? trouble : new Trouble("Something went wrong in this page.");
  for (const reply of turn.replies) reply.ended = true;
  turn.state = "failed";
  turn.trouble = { message: known.message, retryAfter: known.retryAfter, passes: known.passes };
}
