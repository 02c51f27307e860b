/**
 * One reply that stands in the conversation: its words, and, once it has ended, what can be done with it.
 * Knows how it looks and what was clicked; what a click means to the record is decided by `acts`.
 */

import { announce, element, icon, iconButton } from "./dom.js";
import { showWords } from "./words.js";

/** @typedef {import("./conversation.js").Reply} Reply */

const SHOWN_MS = 2000;

export class ReplyView {
  /**
   * @param {Reply} reply
   * @param {import("./transcript.js").Acts} acts
   * @param {{tools: boolean, rates: boolean, again: (() => void)|null}} may
   *   `tools` once ended; `rates`: thumbs and edits, not for a reply that was cut short; `again`: regenerate
   */
  constructor(reply, acts, { tools, rates, again }) {
    this.reply = reply;
    this.acts = acts;
    this.words = element("div", { className: "words" });
    this.note = element("span", { className: "note", role: "status" });
    this.tools = tools ? this.#tools(rates, again) : null;
    this.element = element("div", { className: "reply" }, this.words, this.tools);
    this.paint();
  }

  /** Show the words as they are now. */
  paint() {
    if (this.reply.text) showWords(this.words, this.reply.text);
    else if (this.reply.ended) this.words.replaceChildren(element("p", { className: "note" }, "The reply is empty."));
    else this.words.replaceChildren(element("span", { className: "waiting" }, element("i"), element("i"), element("i")));
  }

  #tools(rates, again) {
    const copy = iconButton("copy", "Copy reply", () => this.#copy(copy));
    const tools = element("div", { className: "tools", role: "group", "aria-label": "About this reply" });
    if (rates) {
      this.thumbs = {
        up: iconButton("up", "Good reply", () => this.#thumb("up")),
        down: iconButton("down", "Bad reply", () => this.#thumb("down")),
      };
      this.edit = iconButton("edit", "Edit reply", () => this.#openEditor());
      tools.append(this.thumbs.up, this.thumbs.down, this.edit);
      this.#showThumb();
    }
    tools.append(copy);
    if (again) tools.append(iconButton("again", "Write another reply", again));
    if (this.reply.edited) this.note.textContent = "Edited by you";
    else if (this.reply.finish === "length") this.note.textContent = "Cut at the length limit";
    tools.append(this.note);
    return tools;
  }

  /** Pressing the pressed thumb takes it back. One press at a time: answers may overtake each other. */
  async #thumb(value) {
    if (this.busy) return;
    this.busy = true;
    const wanted = this.reply.thumb?.value === value ? null : value;
    try {
      await this.acts.thumb(this.reply, wanted);
      this.note.textContent = wanted ? "Thank you" : "Taken back";
    } catch (error) {
      this.note.textContent = `Not saved: ${error.message}`;
    }
    this.busy = false;
    this.#showThumb();
  }

  #showThumb() {
    for (const [value, button] of Object.entries(this.thumbs)) {
      button.setAttribute("aria-pressed", String(this.reply.thumb?.value === value));
    }
  }

  async #copy(button) {
    const copied = await this.acts.copy(this.reply);
    if (!copied) {
      getSelection().selectAllChildren(this.words);
      this.note.textContent = "Selected: copy it with your keyboard";
      return;
    }
    button.replaceChildren(icon("check"));
    announce("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN_MS);
  }

  #openEditor() {
    const box = element("textarea", { value: this.reply.text, dir: "auto", "aria-label": "What the reply should have been" });
    const problem = element("p", { className: "note", role: "alert" });
    const save = element("button", { type: "submit", className: "primary" }, "Save");
    const cancel = element("button", { type: "button", onclick: () => close() }, "Cancel");
    const actions = element("div", { className: "actions" }, save, cancel);
    const editor = element("form", { className: "editor", onsubmit: (event) => keep(event) }, box, actions, problem);
    const close = () => {
      editor.replaceWith(this.words);
      this.tools.hidden = false;
      this.edit.focus();
    };
    const keep = async (event) => {
      event.preventDefault();
      if (!box.value.trim()) return;
      if (box.value === this.reply.text) return close();
      save.disabled = true;
      try {
        await this.acts.edit(this.reply, box.value);
        this.note.textContent = "Edited by you";
        this.paint();
        close();
      } catch (error) {
        problem.textContent = `Not saved: ${error.message}`;
        save.disabled = false;
      }
    };
    editor.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
    });
    this.words.replaceWith(editor);
    this.tools.hidden = true;
    box.focus();
  }
}
