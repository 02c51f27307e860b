/**
 * Server-sent events, as a chat reply sends them: bytes in, JSON objects out. Knows the wire; does not know
 * what the objects mean.
 */

/** The stream ended before the server said that it was done. */
export class ConnectionLost extends Error {}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<any>} each event's data, up to `[DONE]`; throws ConnectionLost when that never comes
 */
export async function* events(body) {
  for await (const data of datas(body)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
  throw new ConnectionLost("the stream ended early");
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>} the `data` of each event; comments and other fields are dropped
 */
async function* datas(body) {
  /** @type {string[]} */
  let data = [];
  for await (const line of lines(body)) {
    if (line === "") {
      if (data.length) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>} whole lines, however the network cut them (also inside one character)
 */
async function* lines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const whole = rest.split(/\r?\n/);
      rest = whole.pop();
      yield* whole;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ConnectionLost("the connection broke", { cause: error });
  } finally {
    reader.cancel().catch(() => {}); // when the reader of events leaves early; a broken stream has nothing to cancel
  }
}
