/**
 * The message box: grows with its text, sends with Enter, and turns into a stop button while a reply is being
 * written. Knows no conversation.
 */

import { icon } from "./dom.js";

export class Composer {
  /**
   * @param {HTMLFormElement} form
   * @param {{send: (text: string) => void, stop: () => void}} acts
   */
  constructor(form, { send, stop }) {
    this.box = form.querySelector("textarea");
    this.sendButton = form.querySelector("#send");
    this.stopButton = form.querySelector("#stop");
    this.send = send;
    this.isWriting = false;
    this.sendButton.append(icon("send"));
    this.stopButton.append(icon("stop"));
    this.stopButton.addEventListener("click", stop);
    this.box.addEventListener("input", () => this.#refresh());
    this.box.addEventListener("keydown", (event) => this.#key(event));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    addEventListener("resize", () => this.#grow());
    this.#refresh(); // a browser may have kept the text over a reload
  }

  /** Whether the user has something half written here. */
  get isInUse() {
    return document.activeElement === this.box && this.box.value !== "";
  }

  /** While a reply is written one can type ahead, but not send. @param {boolean} isWriting */
  setWriting(isWriting) {
    const hadFocus = document.activeElement === this.stopButton || document.activeElement === this.sendButton;
    this.isWriting = isWriting;
    this.sendButton.hidden = isWriting;
    this.stopButton.hidden = !isWriting;
    this.#refresh();
    if (hadFocus) this.focus();
  }

  focus() {
    this.box.focus({ preventScroll: true });
  }

  #key(event) {
    // Enter that confirms a word of an input method (229: how Safari says so) is not an order to send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.box.value.trim();
    if (!text || this.isWriting) return;
    this.box.value = "";
    this.#refresh();
    this.send(text);
  }

  #refresh() {
    this.sendButton.disabled = this.box.value.trim() === "";
    this.#grow();
  }

  #grow() {
    this.box.style.height = "auto";
    this.box.style.height = `${this.box.scrollHeight}px`;
  }
}
