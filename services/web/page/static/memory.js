// The jobs of this browser: the last few, with a small picture of each. Nothing is sent anywhere.

const KEY = "smalti.jobs";
const MAX_JOBS = 24;
const MAX_PROMPT = 300;
const SIDE = 72;

export class Memory {
  /** Lists the jobs in an element. */
  constructor(section) {
    this.section = section;
    this.list = section.querySelector("[data-history]");
    this.jobs = load();
    section.querySelector("[data-forget]").addEventListener("click", () => {
      this.jobs = [];
      this.#store();
    });
    // Another tab has drawn.
    addEventListener("storage", (event) => {
      if (event.key !== KEY) return;
      this.jobs = load();
      this.#list();
    });
    this.#list();
  }

  /** Remembers a job, or more about it. */
  keep({ id, parameters }, thumb) {
    const before = this.jobs.find((each) => each.id === id);
    if (before && (before.thumb || !thumb)) return;
    const job = { id, prompt: parameters.prompt.slice(0, MAX_PROMPT), parameters, thumb };
    this.jobs = before ? this.jobs.map((each) => (each === before ? job : each)) : [job, ...this.jobs];
    this.#store();
  }

  find(id) {
    return this.jobs.find((each) => each.id === id);
  }

  /** Marks the job that is shown. */
  mark(id) {
    for (const link of this.list.querySelectorAll("a")) {
      if (link.hash === `#${id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    this.shown = id;
  }

  #store() {
    this.jobs = this.jobs.slice(0, MAX_JOBS);
    try {
      localStorage.setItem(KEY, JSON.stringify(this.jobs));
    } catch {
      // No room, or no storage: the list lives as long as the page.
    }
    this.#list();
  }

  #list() {
    this.section.hidden = this.jobs.length === 0;
    this.list.replaceChildren(...this.jobs.map(item));
    this.mark(this.shown);
  }
}

function item({ id, prompt, thumb }) {
  const link = document.createElement("a");
  link.href = `#${id}`;
  const picture = document.createElement("span");
  picture.className = "thumb";
  if (thumb) {
    const image = new Image(SIDE, SIDE);
    image.src = thumb;
    image.alt = "";
    picture.append(image);
  }
  const words = document.createElement("span");
  words.dir = "auto";
  words.textContent = prompt;
  link.append(picture, words);
  const made = document.createElement("li");
  made.append(link);
  return made;
}

function load() {
  try {
    const jobs = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(jobs) ? jobs.filter((each) => each?.id && typeof each.prompt === "string") : [];
  } catch {
    return [];
  }
}

/** Returns a small copy of a picture as a data URL; "" if it cannot be read. */
export async function thumbnail(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, SIDE, SIDE);
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return "";
  }
}
