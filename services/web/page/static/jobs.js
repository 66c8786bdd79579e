// Jobs: creating one, following it over broken connections, cancelling it.

import { Problem, call, events, passes } from "./api.js";

const FIRST_PAUSE = 500;
const MAX_PAUSE = 10_000;
const ENDED = ["succeeded", "failed", "cancelled", "expired"];

export const hasEnded = (job) => ENDED.includes(job.state);
const path = (id) => `api/jobs/${encodeURIComponent(id)}`;

/** Returns how many seconds a job took that has ended. */
export const seconds = ({ started, ended }) => (Date.parse(ended) - Date.parse(started)) / 1000;

/**
 * Creates a job. While the service is full or away, tries again.
 * @param body what to draw.
 * @param waits is called with the problem and the pause in milliseconds before each further try.
 */
export async function create(body, { signal, waits }) {
  // With the key, a request whose answer was lost makes no second job.
  const headers = { "idempotency-key": key() };
  for (let tries = 0; ; tries += 1) {
    try {
      // Not with the signal: a request that is on its way may arrive, and then its job must be cancelled.
      const job = await call("api/jobs", { method: "POST", body, headers });
      if (!signal.aborted) return job;
      await cancel(job.id);
      throw signal.reason;
    } catch (error) {
      if (signal.aborted || !passes(error)) throw error;
      const pause = Math.max((error.retryAfter || 0) * 1000, backoff(tries));
      waits(error, pause);
      await sleep(pause, signal);
    }
  }
}

/** Yields the events of a job until it has ended; see `resumed`. */
export const follow = (id, signal) =>
  resumed(`${path(id)}/events`, signal, ({ name, data }) => name === "job" && hasEnded(data));

/**
 * Yields the events of a stream, over broken connections; "lost" and "found" when the connection breaks and is there
 * again.
 * @param isLast says whether nothing comes after an event.
 */
export async function* resumed(url, signal, isLast = () => false) {
  let last = "";
  let tries = 0;
  for (;;) {
    try {
      for await (const event of events(url, { last, signal })) {
        if (event.name === "error") throw new Problem(event.data);
        if (event.name !== "open") yield event;
        else if (tries > 0) yield { name: "found" };
        tries = 0;
        last = event.id ?? last;
        if (isLast(event)) return;
      }
    } catch (error) {
      if (!passes(error)) throw error;
    }
    if (tries === 0) yield { name: "lost" };
    await sleep(backoff(tries), signal);
    tries += 1;
  }
}

export const get = (id, signal) => call(path(id), { signal });

/** Cancels a job; tries again while the service is away. */
export async function cancel(id) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await call(`${path(id)}/cancel`, { method: "POST" });
    } catch (error) {
      if (!passes(error) || tries > 5) throw error;
      await sleep(backoff(tries));
    }
  }
}

/** Returns how many seconds recent jobs took; null if there are none. */
export async function usualSeconds() {
  const { jobs } = await call("api/jobs?state=succeeded&page_size=9");
  const took = jobs
    .filter((job) => job.started && job.ended)
    .map(seconds)
    .sort((one, other) => one - other);
  return took.length ? took[took.length >> 1] : null;
}

/** Waits; wakes up when the machine is online again. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const end = (done) => () => {
      clearTimeout(timer);
      removeEventListener("online", awake);
      signal?.removeEventListener("abort", aborted);
      done();
    };
    const awake = end(resolve);
    const aborted = end(() => reject(signal.reason));
    const timer = setTimeout(awake, milliseconds);
    addEventListener("online", awake);
    if (signal?.aborted) aborted();
    else signal?.addEventListener("abort", aborted);
  });
}

/** Returns a pause that grows with every try. */
export function backoff(tries) {
  // Jitter, so that all pages do not come back at once.
  return Math.min(MAX_PAUSE, FIRST_PAUSE * 2 ** tries) * (0.75 + Math.random() / 2);
}

/** Returns a random key. (`crypto.randomUUID` is missing on pages without TLS.) */
function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
