/**
 * The chat page: joins the conversation, the way to the server and the views, and says what each click does.
 */

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation, newTurn, settle, standing } from "./conversation.js";
import { element } from "./dom.js";
import { Exchange } from "./exchange.js";
import { Feedback } from "./feedback.js";
import { StatusLine } from "./status.js";
import { swapWords } from "./swap.js";
import { Transcript } from "./transcript.js";

const STARTERS = [
  "How do I make good coffee?",
  "Any tips for house plants?",
  "What helps to fall asleep faster?",
  "How do I start running?",
];

const at = (id) => document.getElementById(id);

const api = new Api();
const feedback = new Feedback(api);
const conversation = new Conversation(storageOf(window));
const exchange = new Exchange(api, conversation, changed);
const composer = new Composer(at("composer"), { send, stop: () => exchange.stop() });
/** @type {import("./transcript.js").Acts} */
const acts = {
  async pick(turn, value, seconds) {
    try {
      await feedback.pick(turn.comparisonId, value, seconds);
      settle(turn, value);
    } catch (error) {
      if (error.status !== 404 && error.status !== 409) throw error;
      settle(turn, null); // this comparison takes no choice any more: the conversation must still go on
    }
    conversation.save();
    transcript.draw(turn);
    restFocus();
  },
  async thumb(reply, value) {
    if (value) reply.thumb = { value, feedbackId: await feedback.thumb(reply.id, value) };
    else {
      await feedback.retract(reply.thumb.feedbackId);
      reply.thumb = null;
    }
    conversation.save();
  },
  async edit(reply, text) {
    await feedback.edit(reply.id, text);
    Object.assign(reply, { text, edited: true });
    conversation.save();
  },
  async copy(reply) {
    const copied = await copyText(reply.text);
    if (copied) feedback.signal(reply.id, "copy");
    return copied;
  },
  regenerate(turn) {
    feedback.signal(standing(turn).id, "regenerate");
    exchange.run(turn);
    restFocus();
  },
  retry(turn) {
    exchange.run(turn);
    if (document.activeElement === document.body) restFocus();
  },
};
const transcript = new Transcript(at("transcript"), conversation, acts);
/** @type {import("./swap.js").Facts|null} what serves, as far as the page knows */
let serving = null;

/** @param {string} text */
async function send(text) {
  if (conversation.isWriting) return;
  const open = conversation.last;
  // Writing on without choosing is an answer too. Should it not arrive, nothing is lost but a skip.
  if (open?.state === "choosing") await acts.pick(open, "skip", null).catch(() => settle(open, "skip"));
  tellSwap();
  const turn = newTurn(text);
  conversation.turns.push(turn);
  transcript.add(turn);
  showFrame();
  await exchange.run(turn);
}

/** @param {import("./conversation.js").Turn} turn @param {"words"|"state"} what */
function changed(turn, what) {
  if (what === "words") return transcript.paint(turn);
  transcript.draw(turn);
  composer.setWriting(conversation.isWriting);
  if (turn.state === "choosing" && !composer.isInUse) transcript.focus(turn);
}

/** @param {import("./swap.js").Facts} facts */
function hear(facts) {
  serving = facts;
  tellSwap();
}

/** Say once that another version serves; not while a reply is written or chosen, which it did not write. */
function tellSwap() {
  if (!serving || conversation.isWriting || conversation.last?.state === "choosing") return;
  const known = conversation.version;
  if (conversation.meets(serving.version)) {
    conversation.noteSwap(swapWords(serving));
    transcript.addSwap();
  }
  if (known !== conversation.version) conversation.save();
}

function newChat() {
  exchange.stop();
  conversation.clear();
  transcript.drawAll();
  composer.setWriting(false);
  showFrame();
  restFocus();
}

/** Where the focus goes when what had it is gone. On a phone the box would open the keyboard, so nowhere. */
function restFocus() {
  if (matchMedia("(hover: hover)").matches) composer.focus();
}

/** What depends on whether anything was said yet. */
function showFrame() {
  const isEmpty = conversation.turns.length === 0;
  at("welcome").hidden = !isEmpty;
  at("new-chat").hidden = isEmpty;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text); // undefined on plain http, refused without permission
    return true;
  } catch {
    return false;
  }
}

/** Reading the property alone may throw where the browser forbids storage. */
function storageOf(place) {
  try {
    return place.localStorage;
  } catch {
    return null;
  }
}

const start = (text) => element("li", {}, element("button", { type: "button", onclick: () => send(text) }, text));
at("starters").append(...STARTERS.map(start));
at("new-chat").addEventListener("click", newChat);
transcript.drawAll();
showFrame();
composer.setWriting(false);
new StatusLine(at("status"), api, hear).start();
restFocus();
