/**
 * The status line: whether the server answers, since when a new version does, and what the learner waits for.
 * Asks every few seconds while the page is looked at.
 */

const EVERY_MS = 5000;
const SEGMENT = "default";

export class StatusLine {
  /** @type {string|number|null} the stamp of what answered when the page was opened */
  #firstRevision = null;

  /**
   * @param {HTMLElement} target
   * @param {import("./api.js").Api} api
   * @param {(facts: import("./swap.js").Facts) => void} heard told at each look which version serves
   */
  constructor(target, api, heard) {
    this.target = target;
    this.api = api;
    this.heard = heard;
  }

  /** Begin to ask, for as long as the page is open. */
  start() {
    this.#ask();
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#ask();
    });
    addEventListener("online", () => this.#ask());
  }

  async #ask() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const asked = (this.asked = (this.asked ?? 0) + 1);
    try {
      const { data } = await (await this.api.request("v1/models")).json();
      if (asked === this.asked) this.#show(data.find(({ id }) => id === SEGMENT)?.hone);
    } catch (error) {
      if (asked === this.asked) this.#say("away", error.status === 0 ? "The server is away. Trying again." : error.message);
    }
    if (asked !== this.asked) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(), EVERY_MS);
  }

  #show(hone) {
    if (!hone) return this.#say("ready", "Ready");
    this.#firstRevision ??= hone.revision;
    const since = hone.serving_since ? sinceWords(new Date(hone.serving_since)) : "";
    const waits = hone.why_not ? ` · Learning: ${hone.why_not}` : "";
    const another = hone.again ? "An earlier version is answering again" : "A new version is answering";
    if (hone.revision !== this.#firstRevision) this.#say("new", `${another}${since}${waits}`);
    else this.#say("ready", (since ? `Answering${since}` : "Ready") + waits);
    this.heard(hone);
  }

  /** Only a changed sentence enters the document, or screen readers would hear it every few seconds. */
  #say(tone, sentence) {
    this.target.dataset.tone = tone;
    if (this.target.textContent !== sentence) this.target.textContent = sentence;
  }
}

/** @param {Date} time @returns {string} " since 14:03", with the day when it is not today's */
function sinceWords(time) {
  if (Number.isNaN(time.getTime())) return "";
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  if (time.toDateString() === new Date().toDateString()) return ` since ${clock}`;
  return ` since ${time.toLocaleDateString([], { day: "numeric", month: "short" })}, ${clock}`;
}
