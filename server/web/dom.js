/**
 * Builds elements and icons. Owns the rule that keeps the page safe: whatever a reply or an error says enters
 * the document as text, never as markup. Knows nothing of conversations.
 */

const HEARD_MS = 10_000;
const SVG = "http://www.w3.org/2000/svg";

/** Outlines on a 24-unit grid. */
const OUTLINES = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  up: "M7 11v9H4v-9h3zm0 0 4-7c1.4 0 2.3 1 2 2.5L12.3 10H18a2 2 0 0 1 2 2.3l-1 6A2 2 0 0 1 17 20H7",
  down: "M17 13V4h3v9h-3zm0 0-4 7c-1.4 0-2.3-1-2-2.5l.7-3.5H6a2 2 0 0 1-2-2.3l1-6A2 2 0 0 1 7 4h10",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l1-4L16.5 4.5l3 3L8 19l-4 1zM14 7l3 3",
  again: "M19 12a7 7 0 1 1-2.2-5.1L19 9M19 4v5h-5",
};

/**
 * An element with properties, attributes (names with a dash, and `role`), listeners (`on…`) and children.
 * @param {string} tag
 * @param {Record<string, any>} [given]
 * @param {...(Node|string|null)} children strings become text
 * @returns {any}
 */
export function element(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") made.setAttribute(name, String(value));
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/**
 * @param {keyof typeof OUTLINES} name
 * @returns {SVGSVGElement} a drawing that screen readers pass over
 */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", OUTLINES[name]);
  drawing.append(path);
  return drawing;
}

/**
 * A quiet button that shows only an icon; its label is for screen readers and the tooltip.
 * @param {keyof typeof OUTLINES} name
 * @param {string} label
 * @param {() => void} onclick
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, onclick) {
  return element("button", { type: "button", className: "quiet", title: label, "aria-label": label, onclick }, icon(name));
}

/**
 * Say something to screen readers, politely. It does not stay: who reads the page by hand would find it twice.
 * @param {string} sentence
 */
export function announce(sentence) {
  const announcer = document.getElementById("announcer");
  announcer.replaceChildren();
  const said = element("p", {}, sentence);
  // A region that is emptied and filled in one go is not read again when the sentence is the same.
  setTimeout(() => announcer.replaceChildren(said), 50);
  setTimeout(() => said.remove(), HEARD_MS);
}
