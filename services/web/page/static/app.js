// The page: one job at a time, from the prompt to the pictures. The job in the address is the one that is shown, so a
// reload, a link, and the way back all lead to it.

import { Problem, Unreachable, call, passes } from "./api.js";
import { Ask, examples } from "./ask.js";
import { Board, PLACES, address } from "./board.js";
import * as jobs from "./jobs.js";
import { Memory, thumbnail } from "./memory.js";
import { drawnAnew, loadOrigin, originOf, repeated } from "./origin.js";
import { Told, about } from "./told.js";
import { Viewer } from "./viewer.js";
import { Wall, shown as wallShown } from "./wall.js";

/** Pause between two looks at the place in the queue. */
const QUEUE_PAUSE = 3000;
/** Time for which a lost connection is not mentioned. */
const LOST_PAUSE = 1200;
/** Seconds of drawing after which the time that is left is told. */
const MIN_SECONDS = 3;

const find = (name) => document.querySelector(`[data-${name}]`);
const told = new Told(document);
const progress = find("progress");
const board = new Board(find("board"), (index) => viewer.open(shown, show(index)));
const memory = new Memory(find("earlier"));
const ask = new Ask(find("ask"), (prompt) => draw({ prompt }));
const viewer = new Viewer(find("viewer"), { moved: show, draw, model: () => model });

const wall = new Wall(find("wall-view"), {
  lost: () => (losing ??= setTimeout(lost, LOST_PAUSE)),
  found: () => (losing = found(losing)),
  announce: (text) => told.announce(text),
});
const share = find("share");
/** The choice of a model, where there are several. */
const choices = find("model");
/** The timer after which the wall says that its connection is lost. */
let losing = null;

/** The job that is shown; null without one. */
let shown = null;
/** Ends what belongs to the job that is shown. */
let work = new AbortController();
/** The model, once it is known. */
let model = null;
/** How many seconds a job usually takes; null if that is not known. */
let usual = null;
/** When and with how many rows the job that is shown was first seen at work. */
let seen = null;

/** Whether the job was made in this browser: a visitor of a link does not stop what another one draws. */
const isMine = (job) => Boolean(memory.find(job.id));

const models = loadModel();

async function loadModel() {
  const { models: all } = await persist(() => call("api/models"));
  const name = (all.find((each) => each.default) ?? all[0])?.name;
  const choice = choices.lastElementChild;
  choice.replaceChildren(...all.map((each) => new Option(each.name, each.name, false, each.name === name)));
  choices.hidden = all.length < 2;
  choice.addEventListener("change", () => useModel(choice.value));
  await useModel(name);
  viewer.refresh();
  if (!shown && !route().id && ask.stopping.hidden) empty();
  return model;
}

/** Draws with a model from now on. */
async function useModel(name) {
  const found = await persist(() => call(`api/models/${encodeURIComponent(name)}`));
  if (model && choices.lastElementChild.value !== name) return; // Another one was chosen meanwhile.
  model = found;
  ask.offer(model);
}

/** Does something again until the service answers. */
async function persist(act, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      const result = await act();
      if (tries > 0) told.connection("Connected again.", { passing: true });
      return result;
    } catch (error) {
      if (signal?.aborted || !passes(error)) throw error;
      if (tries === 0) told.connection("The service does not answer. This page tries again by itself.");
      await jobs.sleep(jobs.backoff(tries), signal);
    }
  }
}

/** Begins something new: what belongs to the job before ends. */
function begin() {
  work.abort(new DOMException("something else is shown", "AbortError"));
  work = new AbortController();
  return work.signal;
}

function empty() {
  begin();
  shown = null;
  memory.mark(null);
  board.clear();
  rest();
  told.read("", null);
  document.title = "Smalti";
  const acts = model ? examples(model).map((prompt) => [prompt, () => draw({ prompt })]) : [];
  told.show(model ? "Write a line, or begin with one of these." : "Write a line.", { acts });
}

/** Nothing is being drawn. */
function rest() {
  ask.busy(false);
  progress.hidden = true;
}

function expect(text) {
  ask.busy(!shown || isMine(shown));
  told.show(text, { mood: "busy" });
}

/** Draws the pictures of a prompt, or of all parameters of an earlier job. */
async function draw(parameters) {
  if (!parameters.prompt.trim()) {
    ask.refuse("Write what you want to see.");
    told.announce("Write what you want to see.");
    ask.field.focus();
    return;
  }
  const signal = begin();
  const old = shown;
  if (old && !jobs.hasEnded(old) && isMine(old)) jobs.cancel(old.id).catch(() => {});
  if (ask.text.trim() !== parameters.prompt) ask.text = parameters.prompt;
  shown = seen = null;
  board.clear();
  told.read("", null);
  expect("Sending");
  // The button that was pressed may be gone; the keyboard stays where it can stop.
  if (document.activeElement === document.body) ask.stopping.focus();
  const named = choices.hidden ? {} : { model: choices.lastElementChild.value };
  const body = { ...named, n: Math.min(PLACES, model?.default_candidates ?? PLACES), ...parameters };
  if (wallShown && !share.control.checked) body.labels = { ...body.labels, wall: "off" };
  const waits = (error, pause) => {
    if (error instanceof Unreachable) told.connection("No connection. Your prompt is sent as soon as there is one.");
    else expect(`${error.used || "Too much is being drawn right now"}; trying again in ${about(pause / 1000)}`);
    told.announce(told.state.textContent);
  };
  try {
    const job = await jobs.create(body, { signal, waits });
    told.connection("");
    memory.keep(job);
    history.pushState(null, "", `#${job.id}`);
    await follow(job, signal);
  } catch (error) {
    if (!signal.aborted) refused(error, parameters);
  }
}

function refused(error, parameters = {}) {
  rest();
  told.connection("");
  const problem = error instanceof Problem;
  if (!problem) console.error(error);
  const said = problem && error.used ? `${error.used}.` : error.message;
  const text = problem ? said.replace(/^prompt: /, "The prompt ") : "Something went wrong in this page.";
  if (problem && error.field === "prompt") {
    ask.refuse(text);
    told.show("Nothing was drawn.", { mood: "trouble" });
    ask.field.focus();
  } else {
    told.show(text, { mood: "trouble", acts: [["Try again", () => draw({ ...parameters, prompt: ask.text })]] });
  }
  told.announce(text);
}

/** Shows a job until it has ended. */
async function follow(job, signal) {
  memory.mark(job.id);
  await take(job, signal);
  if (jobs.hasEnded(job)) return;
  const done = new AbortController();
  const looking = lookAtQueue(job.id, AbortSignal.any([signal, done.signal]));
  let losing = null;
  try {
    for await (const { name, data } of jobs.follow(job.id, signal)) {
      if (name === "job") await take(data, signal);
      else if (name === "rows") board.lay(data.runs);
      else if (name === "preview") await board.preview(data);
      else if (name === "lost") losing ??= setTimeout(lost, LOST_PAUSE);
      else if (name === "found") losing = found(losing);
    }
  } finally {
    clearTimeout(losing);
    done.abort();
    await looking;
  }
}

function lost() {
  told.connection("The connection is lost. Drawing goes on, and this page joins again by itself.");
}

function found(losing) {
  clearTimeout(losing);
  if (!told.line.hidden) told.connection("Connected again.", { passing: true });
  return null;
}

/** Takes a version of the job that is shown. */
async function take(job, signal) {
  const before = shown;
  shown = job;
  const { prompt, first_candidate: first, candidates } = job.parameters;
  if (!before || before.id !== job.id) {
    if (!wall.isOpen) title(job);
    if (!ask.text.trim()) ask.text = prompt;
  }
  told.read(prompt, job.reading);
  if (job.state === "queued") queued(job);
  else if (job.state === "running") {
    const { rows, columns } = model ?? (await models);
    const origin = before?.state === "running" && before.id === job.id ? null : await loadOrigin(job, signal);
    if (signal.aborted) return;
    board.begin({ first, count: candidates, rows, columns, origin });
    running(job);
  } else if (job.state === "succeeded") await succeeded(job, signal);
  else ended(job);
}

function title({ parameters: { prompt } }) {
  document.title = `${prompt.slice(0, 60)} · Smalti`;
}

function queued({ jobs_ahead: ahead }) {
  const time = ahead && usual !== null ? `; ${about(usual * (ahead + 1))}` : "";
  const text = ahead ? `${ahead} ${ahead === 1 ? "job is" : "jobs are"} before yours${time}` : "Yours is next";
  expect(text);
  told.announce(`Waiting. ${text}.`);
}

/** Looks at the place in the queue, which changes without an event, while the job waits. */
async function lookAtQueue(id, signal) {
  try {
    if (shown.state === "queued" && shown.jobs_ahead) usual = await jobs.usualSeconds().catch(() => null);
    while (!signal.aborted && shown?.id === id && shown.state === "queued") {
      queued(shown);
      await jobs.sleep(QUEUE_PAUSE, signal);
      const job = await jobs.get(id, signal).catch(() => null);
      if (job?.state === "queued" && shown?.state === "queued" && shown.id === id) shown = job;
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

function running({ progress: { rows, rows_drawn: drawn, candidates, prompt_encoded: encoded } }) {
  progress.hidden = false;
  progress.max = rows || 1;
  progress.value = drawn;
  seen ??= { at: performance.now(), drawn };
  const [seconds, since] = [(performance.now() - seen.at) / 1000, drawn - seen.drawn];
  const left = since && seconds > MIN_SECONDS ? `, ${about((seconds / since) * (rows - drawn))} left` : "";
  const anew = drawnAnew(shown);
  const what = anew ? `${anew} anew, in ${candidates} candidates` : `${candidates} candidates`;
  if (!encoded) expect("Reading the prompt");
  else expect(drawn < rows ? `Drawing ${what}${left}` : "Choosing the best");
  told.announce(drawn < rows / 2 ? `Drawing ${what}.` : "More than half is drawn.");
}

async function succeeded(job, signal) {
  const { pictures } = job;
  await board.choose(pictures, job.parameters.prompt);
  if (signal.aborted) return;
  rest();
  const many = pictures.length === 1 ? "The best" : `The best ${pictures.length}`;
  const text = `${many} of ${job.parameters.candidates}, drawn in ${about(jobs.seconds(job))}`;
  told.show(text, { acts: [again(job), ...back(job)], aloud: true });
  openLinked();
  if (isMine(job)) memory.keep(job, await thumbnail(address(pictures[0])));
}

const again = (job) => ["Draw again", () => draw(repeated(job))];

/** Returns the way back to the picture that a job has started from. */
function back(job) {
  const origin = originOf(job);
  return origin ? [["The picture before", () => (location.hash = `#${origin.id}/${origin.candidate}`)]] : [];
}

function ended(job) {
  const { state } = job;
  rest();
  board.end();
  const texts = {
    failed: `Drawing has failed: ${job.error?.detail ?? "the reason is not known"}`,
    cancelled: "Stopped",
    expired: "It took longer than its time limit",
  };
  const mood = state === "cancelled" ? "" : "trouble";
  told.show(texts[state], { mood, acts: [again(job), ...back(job)], aloud: true });
}

function stop() {
  if (ask.stopping.hidden) return;
  if (shown) {
    expect("Stopping");
    jobs.cancel(shown.id).catch(refused);
  } else {
    begin();
    told.connection("");
    board.clear();
    rest();
    told.show("Stopped", { aloud: true });
  }
}

/** Returns the job and the candidate in the address. */
function route() {
  const [, id, candidate] = /^#([A-Za-z0-9-]{1,64})(?:\/(\d+))?$/.exec(location.hash) ?? [];
  return { id, candidate: candidate === undefined ? null : Number(candidate) };
}

/** Puts the picture with an index into the address; returns the index. */
function show(index) {
  if (!shown?.pictures) return index;
  const hash = index === null ? `#${shown.id}` : `#${shown.id}/${shown.pictures[index].candidate}`;
  history.replaceState(null, "", hash);
  return index;
}

/** Opens the picture in the address. */
function openLinked() {
  const { candidate } = route();
  const index = shown.pictures.findIndex((each) => each.candidate === candidate);
  if (candidate !== null && index >= 0) viewer.open(shown, index);
}

/** Shows the job in the address. */
async function visit() {
  const { id } = route();
  if (look(location.hash === "#/wall" && wallShown)) return undefined;
  if (!id) return empty();
  if (shown?.id === id) {
    title(shown);
    return shown.pictures && openLinked();
  }
  viewer.close();
  const signal = begin();
  shown = seen = null;
  board.clear();
  ask.text = "";
  rest();
  told.show("Fetching", { mood: "busy" });
  try {
    return await follow(await persist(() => jobs.get(id, signal), signal), signal);
  } catch (error) {
    return signal.aborted ? undefined : gone(id, error);
  }
}

/** Shows the wall, or what this visitor draws; returns whether it is the wall. */
function look(atWall) {
  document.querySelector("main").dataset.view = atWall ? "wall" : "";
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === (atWall ? "wall" : "")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  losing = clearTimeout(losing) ?? null;
  if (!atWall) {
    wall.close();
    return false;
  }
  viewer.close();
  document.title = "The wall · Smalti";
  wall.open();
  return true;
}

function gone(id, error) {
  if (!(error instanceof Problem) || error.status !== 404) return refused(error);
  rest();
  board.end();
  const known = memory.find(id);
  if (known) ask.text = known.prompt;
  const acts = known ? [["Draw the same pictures", () => draw(known.parameters)]] : [];
  told.show("These pictures are not kept any more", { mood: "trouble", acts, aloud: true });
  return undefined;
}

ask.stopping.addEventListener("click", stop);
find("home").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", location.pathname + location.search);
  ask.text = "";
  visit();
});
find("views").hidden = share.hidden = !wallShown;
share.lastElementChild.textContent = wallShown === "prompts" ? "Show on the wall with words" : "Show on the wall";
for (const link of document.querySelectorAll('a[data-view=""]')) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    // Back to what this visitor draws, if there is something.
    history.pushState(null, "", shown ? `#${shown.id}` : location.pathname + location.search);
    visit();
  });
}
addEventListener("popstate", visit);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && !wall.isOpen) stop();
});
addEventListener("offline", () => told.connection("This machine is offline. Drawing goes on without it."));
addEventListener("online", () => told.connection("Online again.", { passing: true }));

visit();
