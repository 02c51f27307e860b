/**
 * A reply's text as paragraphs, lists, headings and code. A small part of Markdown, read line by line; all of
 * it ends as text nodes. What it does not know stays as it was written.
 */

import { element } from "./dom.js";

/**
 * @typedef {{kind: "text"|"code"|"heading", text: string}
 *   | {kind: "list", ordered: boolean, start: number, items: string[]}} Block
 */

const FENCE = /^\s*```/;
const HEADING = /^#{1,6}\s+(.+)$/;
const BULLET = /^\s*[-*•]\s+(.+)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.+)$/;
const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*)/;

/** What each element shows now, so that a growing reply redraws only its last block. */
const shown = new WeakMap();

/**
 * Show `text` inside `target`; called again and again while a reply grows.
 * @param {HTMLElement} target
 * @param {string} text
 */
export function showWords(target, text) {
  const next = blocks(text).map((block) => ({ block, source: JSON.stringify(block) }));
  const before = shown.get(target) ?? [];
  let same = 0;
  while (same < next.length && same < before.length && next[same].source === before[same]) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...next.slice(same).map(({ block }) => draw(block)));
  shown.set(target, next.map(({ source }) => source));
}

/**
 * @param {string} text
 * @returns {Block[]}
 */
export function blocks(text) {
  /** @type {Block[]} */
  const found = [];
  /** @type {string[]|null} */
  let code = null;
  let open = false; // whether the next plain line belongs to the paragraph before it
  for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
    if (FENCE.test(line)) {
      if (code) found.push({ kind: "code", text: code.join("\n") });
      code = code ? null : [];
      open = false;
    } else if (code) {
      code.push(line);
    } else {
      open = readLine(found, line, open);
    }
  }
  if (code) found.push({ kind: "code", text: code.join("\n") });
  return found;
}

/**
 * Adds one line outside code to the blocks.
 * @param {Block[]} found
 * @param {string} line
 * @param {boolean} open
 * @returns {boolean} whether a paragraph may go on with the next line
 */
function readLine(found, line, open) {
  const last = found.at(-1);
  const heading = HEADING.exec(line);
  const bullet = BULLET.exec(line);
  const number = NUMBER.exec(line);
  if (!line.trim()) return false;
  if (heading) {
    found.push({ kind: "heading", text: heading[1] });
    return false;
  }
  if (bullet || number) {
    const item = bullet ? bullet[1] : number[2];
    const ordered = !bullet;
    if (last?.kind === "list" && last.ordered === ordered) last.items.push(item);
    else found.push({ kind: "list", ordered, start: ordered ? Number(number[1]) : 1, items: [item] });
    return false;
  }
  if (open && last?.kind === "text") last.text += `\n${line}`;
  else found.push({ kind: "text", text: line });
  return true;
}

/**
 * @param {Block} block
 * @returns {HTMLElement}
 */
function draw(block) {
  if (block.kind === "code") {
    // Long lines scroll, so the keyboard must be able to reach them.
    const attributes = { dir: "ltr", tabIndex: 0, role: "region", "aria-label": "Code" };
    return element("pre", attributes, element("code", {}, block.text));
  }
  if (block.kind === "list") {
    const items = block.items.map((item) => element("li", { dir: "auto" }, ...inline(item)));
    return element(block.ordered ? "ol" : "ul", block.ordered ? { start: block.start } : {}, ...items);
  }
  if (block.kind === "heading") {
    return element("p", { dir: "auto" }, element("strong", {}, ...inline(block.text)));
  }
  return element("p", { dir: "auto" }, ...inline(block.text));
}

/**
 * @param {string} text
 * @returns {(Node|string)[]}
 */
function inline(text) {
  return text.split(INLINE).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return element("code", {}, part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return element("strong", {}, part.slice(2, -2));
    if (part.length > 2 && part.startsWith("*") && part.endsWith("*")) return element("em", {}, part.slice(1, -1));
    return part;
  });
}
