// The large view of a picture: what it was drawn with, its files and its link.

import { address } from "./board.js";
import { copy, fileName, link, saveGrid, savePicture, saveWebp, writesWebp } from "./files.js";

/** The parameters that are shown, with their names. */
const SHOWN = [
  ["seed", "Seed"],
  ["candidates", "Candidates"],
  ["guidance_scale", "Guidance"],
  ["temperature", "Temperature"],
  ["top_k", "Top k"],
  ["top_p", "Top p"],
  ["model", "Model"],
];

export class Viewer {
  /**
   * Takes the dialog.
   * @param handlers `moved` is called with the index of the picture that is shown, or null once the dialog is closed;
   *   `again` draws the same prompt once more.
   */
  constructor(dialog, { moved, again }) {
    const find = (name) => dialog.querySelector(`[data-${name}]`);
    this.dialog = dialog;
    this.large = find("large");
    this.title = find("title");
    this.place = find("place");
    this.done = find("done");
    this.parameters = find("parameters");
    this.moved = moved;
    const on = (name, act) => find(name).addEventListener("click", act);
    on("close", () => dialog.close());
    on("back", () => this.#turn(-1));
    on("on", () => this.#turn(1));
    on("save", () => this.#try(() => savePicture(this.#picture, this.#name)));
    on("save-webp", () => this.#try(() => saveWebp(this.#picture, this.#name)));
    on("save-grid", () => this.#try(() => saveGrid(this.job.pictures, fileName(this.#prompt))));
    on("copy", async () => {
      const copied = await copy(link(this.job.id, this.#picture.candidate));
      this.done.textContent = copied ? `The link is copied. ${this.#kept}` : "This browser does not let pages copy.";
    });
    on("again", () => {
      dialog.close();
      again(this.#prompt);
    });
    writesWebp().then((can) => (find("save-webp").hidden = !can));
    dialog.addEventListener("close", () => moved(null));
    // A click on the backdrop is one on the dialog itself.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1 };
      if (event.key in steps) this.#turn(steps[event.key]);
    });
  }

  /** Shows a picture of a job. */
  open(job, index) {
    this.job = job;
    this.index = index;
    this.#fill();
    if (!this.dialog.open) this.dialog.showModal();
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  get #picture() {
    return this.job.pictures[this.index];
  }

  get #prompt() {
    return this.job.parameters.prompt;
  }

  get #name() {
    return fileName(this.#prompt, this.index);
  }

  get #kept() {
    return this.job.deleted ? `It works until ${new Date(this.job.deleted).toLocaleString()}.` : "";
  }

  #turn(steps) {
    const { length } = this.job.pictures;
    this.index = (this.index + steps + length) % length;
    this.#fill();
    this.moved(this.index);
  }

  #fill() {
    const picture = this.#picture;
    const { pictures, parameters } = this.job;
    this.large.src = address(picture);
    this.large.width = picture.width;
    this.large.height = picture.height;
    this.large.alt = picture.wording || this.#prompt;
    this.title.textContent = this.#prompt;
    this.place.textContent = `Picture ${this.index + 1} of ${pictures.length}`;
    this.done.textContent = "";
    const facts = SHOWN.map(([field, label]) => [label, parameters[field]]);
    facts.splice(1, 0, ["Candidate", picture.candidate], ["Score", picture.score.toFixed(3)]);
    if (picture.wording) facts.push(["Drawn as", picture.wording]);
    if (this.job.deleted) facts.push(["Kept until", new Date(this.job.deleted).toLocaleString()]);
    this.parameters.replaceChildren(
      ...facts.flatMap(([label, value]) => {
        const [term, text] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = label;
        text.textContent = typeof value === "number" ? Number(value.toPrecision(12)) : value;
        return [term, text];
      }),
    );
  }

  async #try(act) {
    try {
      await act();
      this.done.textContent = "Saved.";
    } catch {
      this.done.textContent = "The file could not be read. The pictures may not be kept any more.";
    }
  }
}
