/**
 * What is shown in place of a reply that did not come: a plain sentence and a way to try again, by itself when
 * the server said how long to wait. Knows no network.
 */

import { element } from "./dom.js";

/**
 * @param {{message: string, retryAfter: number|null, passes: boolean}} trouble
 * @param {() => void} retry
 * @returns {HTMLElement}
 */
export function noticeOf(trouble, retry) {
  const sentence = element("p", {}, trouble.message);
  const again = element("button", { type: "button", onclick: retry }, "Try again");
  const notice = element(
    "div",
    { className: "notice", role: "alert" },
    sentence,
    element("div", { className: "actions" }, again),
  );
  if (trouble.retryAfter) countDown(notice, sentence, trouble.retryAfter, retry);
  return notice;
}

/** Seconds tick in a part that screen readers leave alone; they have heard the sentence once. */
function countDown(notice, sentence, seconds, retry) {
  const due = performance.now() + seconds * 1000;
  const clock = element("span", { "aria-hidden": "true" });
  sentence.append(" Trying again by itself", clock);
  const tick = () => {
    if (!notice.isConnected) return clearInterval(timer);
    const left = Math.ceil((due - performance.now()) / 1000);
    clock.textContent = left > 0 ? ` in ${left} s` : "";
    if (left > 0) return;
    clearInterval(timer);
    retry();
  };
  const timer = setInterval(tick, 250);
  clock.textContent = ` in ${seconds} s`;
}
