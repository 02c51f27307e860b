/**
 * What is said of a swap: one calm sentence from what the server tells anybody about the version that serves.
 * Knows neither the network nor the document.
 */

/**
 * @typedef {object} Facts
 * @property {number} version 0 is the bare base
 * @property {boolean} again it served before, and something else in between
 * @property {{picks: number, thumbs: number, people: number}|null} learned_from null: it learned from nobody here
 */

/** @param {Facts} facts @returns {string} */
export function swapWords({ version, again, learned_from: learned }) {
  const serves = `Version ${version} serves ${again ? "again" : "now"}`;
  const votes = [counted(learned?.picks, "pick", "picks"), counted(learned?.thumbs, "thumb", "thumbs")];
  const from = votes.filter(Boolean).join(" and ");
  const people = counted(learned?.people, "person", "people");
  if (!from) return `${serves}.`;
  return `${serves}: learned from ${from}${people && ` by ${people}`}.`;
}

/** @param {number|undefined} count @returns {string} empty for none */
function counted(count, one, many) {
  return count ? `${count.toLocaleString("en")} ${count === 1 ? one : many}` : "";
}
