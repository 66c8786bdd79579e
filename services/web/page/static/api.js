// The HTTP API: requests, problems, and streams of events.

import { askForKey, authorization } from "./key.js";

/** The longest time in seconds for which the page waits by itself. */
const LONGEST = 120;

/** A request that was refused, or a job that has failed: problem details (RFC 9457). */
export class Problem extends Error {
  constructor(body, status) {
    super(body.detail || body.title || `status ${status}`);
    this.status = body.status || status;
    this.field = body.field || "";
    this.retryAfter = body.retry_after || 0;
    this.quota = body.quota || "";
    this.limit = body.limit || 0;
    this.left = body.left || 0;
  }

  /** Whether the same request may succeed soon. */
  get passes() {
    return [408, 429, 502, 503, 504].includes(this.status) && this.retryAfter <= LONGEST;
  }

  /** The limit of the tenant that is used up, in words; "" if the reason is another. */
  get used() {
    if (this.quota === "requests_per_minute") return `You may draw ${this.limit} times a minute`;
    if (this.quota !== "candidates_per_day") return this.quota && this.message;
    const again = new Date(Date.now() + 1000 * this.retryAfter);
    const time = again.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    return `You may draw ${this.limit} candidates a day, and ${this.left} are left; come again at ${time}`;
  }
}

/** The service does not answer. */
export class Unreachable extends Error {}

/** Returns whether an error passes by itself. */
export const passes = (error) => error instanceof Unreachable || (error instanceof Problem && error.passes);

/** Returns the URL of a path of the service, wherever a proxy has put it. */
export const at = (path) => new URL(path.replace(/^\//, ""), document.baseURI);

/** Sends a request; returns the answer. Asks for a key if one is needed. */
export async function send(path, options = {}) {
  for (;;) {
    const used = authorization();
    const answer = await sendOnce(path, options, used);
    if (answer.ok) return answer;
    if (answer.status === 401 && (await askForKey(used))) continue;
    const problem = await answer.json().catch(() => ({}));
    throw new Problem(problem.error ? { detail: problem.error.message } : problem, answer.status);
  }
}

async function sendOnce(path, { method = "GET", body, headers = {}, signal }, used) {
  const own = { ...headers, ...used };
  try {
    return await fetch(at(path), {
      method,
      signal,
      credentials: "same-origin",
      headers: body ? { "content-type": "application/json", ...own } : own,
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable("the service does not answer");
  }
}

/** Sends a request; returns the JSON of the answer. */
export async function call(path, options) {
  const answer = await send(path, options);
  return answer.json();
}

/** The longest silence of a stream that lives; it has a comment every 15 seconds. */
const SILENCE = 40_000;

/**
 * Yields the events of a stream, as `{name, id, data}`; the first one, "open", when it begins.
 * An EventSource could not send headers, and would hide why a stream has ended.
 */
export async function* events(path, { last, signal }) {
  const own = new AbortController();
  const stop = () => own.abort();
  signal.addEventListener("abort", stop);
  let timer = setTimeout(stop, SILENCE);
  try {
    const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
    const answer = await send(path, { headers, signal: own.signal });
    yield { name: "open" };
    if (answer.status === 204) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE);
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    // A stream that breaks off, or is silent for too long, can be taken up again.
    if (signal.aborted || error instanceof Problem) throw error;
    throw new Unreachable("the stream has ended");
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    own.abort();
  }
}

function parse(block) {
  const fields = {};
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  return fields.data ? { name: fields.event, id: fields.id, data: JSON.parse(fields.data) } : null;
}
