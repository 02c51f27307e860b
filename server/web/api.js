/**
 * The way to the server: a session kept in memory and renewed when it has expired, requests, and every way in
 * which they fail as one kind of error with a sentence for people. Knows no conversation.
 */

const LONGEST_WAIT_S = 120;

/** What went wrong, in plain words. `retryAfter` in seconds when the server asked to wait. */
export class Trouble extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string, retryAfter?: number|null}} [details] status 0: the server was not reached
   */
  constructor(message, { status = 0, code = "unreachable", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export class Api {
  /** @type {Promise<string>|null} one session for all requests, also while it is being made */
  #token = null;

  /**
   * @param {string} path below the page's own address, so that Hone also works behind a path of a proxy
   * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>} a good answer; throws Trouble otherwise, AbortError when `signal` says so
   */
  async request(path, options = {}) {
    const token = await this.#session();
    const answer = await reach(path, options, token);
    if (answer.status !== 401) return good(answer);
    this.#token = null; // expired, or the server forgot it: a new one, once
    return good(await reach(path, options, await this.#session()));
  }

  #session() {
    this.#token ??= openSession().catch((error) => {
      this.#token = null;
      throw error;
    });
    return this.#token;
  }
}

async function openSession() {
  const answer = await reach("v1/sessions/local", { method: "POST" }, null);
  if (answer.status === 403 || answer.status === 404) {
    const message = "This page talks only to a server on the same machine. From elsewhere, use a frontend with its own key.";
    throw new Trouble(message, { status: answer.status, code: "not_local" });
  }
  return (await (await good(answer)).json()).token;
}

async function reach(path, { method = "GET", body, headers = {}, signal }, token) {
  const sent = { ...headers };
  if (token) sent.Authorization = `Bearer ${token}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    return await fetch(new URL(path, document.baseURI), { method, headers: sent, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.");
  }
}

/** The answer itself when it is good; anything else as Trouble. */
async function good(answer) {
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw troubleOf(said.error ?? {}, answer.status, waitOf(answer.headers.get("Retry-After")));
}

/**
 * The error envelope of an answer or of a stream, as Trouble.
 * @param {{message?: string, code?: string}} error
 * @param {number} [status]
 * @param {number|null} [retryAfter]
 */
export function troubleOf(error, status = 500, retryAfter = null) {
  const code = error.code ?? "error";
  return new Trouble(sentence(code, status, error.message), { status, code, retryAfter });
}

function sentence(code, status, said) {
  if (code === "prompt_too_long" || status === 413) return "This message is too long for the assistant to read.";
  if (status === 401) return "The session could not be renewed. Reload the page to go on.";
  if (status === 429) return "The assistant is busy with other conversations.";
  return said || "Something went wrong in the server.";
}

/** Seconds of a `Retry-After` header (a number or a date), kept within reason. */
function waitOf(header) {
  if (!header) return null;
  const seconds = Number.isNaN(Number(header)) ? (Date.parse(header) - Date.now()) / 1000 : Number(header);
  return Number.isNaN(seconds) ? null : Math.min(Math.max(Math.ceil(seconds), 1), LONGEST_WAIT_S);
}
