// The large view of a picture: what it was drawn with, its files and its link.

import { address } from "./board.js";
import { Brush } from "./brush.js";
import { copy, fileName, link, saveGrid, savePicture, saveWebp, writesWebp } from "./files.js";
import { hasKey } from "./key.js";
import { drawnAnew, originOf, repeated, startingFrom } from "./origin.js";

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
   *   `draw` draws what has parameters; `model` returns the model, or null while it is not known.
   */
  constructor(dialog, { moved, draw, model }) {
    const find = (name) => dialog.querySelector(`[data-${name}]`);
    this.dialog = dialog;
    this.large = find("large");
    this.title = find("title");
    this.place = find("place");
    this.done = find("done");
    this.parameters = find("parameters");
    this.frame = find("sheet");
    this.strength = find("strength");
    this.make = find("make");
    this.brushing = find("brush-open");
    this.moved = moved;
    this.draw = draw;
    this.model = model;
    this.brush = new Brush(find("tiles"), find("brush"), {
      draw: (prompt, tiles) => this.#draw({ prompt, ...this.#startingFrom({ redrawn_tiles: tiles }) }),
      left: () => this.#brushed(),
    });
    const on = (name, act) => find(name).addEventListener("click", act);
    on("close", () => dialog.close());
    on("back", () => this.#turn(-1));
    on("on", () => this.#turn(1));
    on("save", () => this.#try(() => savePicture(this.#picture, this.#name)));
    on("save-webp", () => this.#try(() => saveWebp(this.#picture, this.#name)));
    on("save-grid", () => this.#try(() => saveGrid(this.job.pictures, fileName(this.#prompt))));
    on("copy", async () => {
      // Where keys are wanted, others can open a picture at its signed address, and the page only with a key of theirs.
      const picture = this.#picture;
      const copied = await copy(hasKey() ? picture.url : link(this.job.id, picture.candidate));
      this.done.textContent = copied ? `The link is copied. ${this.#kept}` : "This browser does not let pages copy.";
    });
    on("again", () => this.#draw(repeated(this.job)));
    on("more", () => this.#draw({ prompt: this.#prompt, ...this.#startingFrom({ strength: this.#strength }) }));
    on("brush-open", () => this.#brush());
    this.strength.addEventListener("input", () => this.#tellStrength());
    this.#tellStrength();
    writesWebp().then((can) => (find("save-webp").hidden = !can));
    dialog.addEventListener("close", () => {
      this.brush.leave();
      moved(null);
    });
    // A click on the backdrop is one on the dialog itself.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1 };
      if (this.brush.isOpen) {
        if (event.key !== "Escape") return;
        // Else the dialog would close as well.
        event.preventDefault();
        this.brush.leave();
      } else if (event.key in steps && event.target !== this.strength) this.#turn(steps[event.key]);
    });
  }

  /** Shows a picture of a job. */
  open(job, index) {
    this.brush.leave();
    this.job = job;
    this.index = index;
    this.#fill();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Shows the picture again, since something about it is known now. */
  refresh() {
    if (this.dialog.open) this.#fill();
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

  get #strength() {
    return Number(this.strength.value) / 100;
  }

  #startingFrom(kept) {
    return startingFrom(this.job, this.#picture, kept);
  }

  /** Draws something else; the dialog makes room for it. */
  #draw(parameters) {
    this.dialog.close();
    this.draw(parameters);
  }

  #brush() {
    const { rows, columns } = this.model();
    this.dialog.dataset.mode = "brush";
    this.done.textContent = "";
    this.brush.open({ rows, columns, prompt: this.#prompt });
  }

  #brushed() {
    delete this.dialog.dataset.mode;
    if (this.dialog.open) this.brushing.focus();
  }

  #tellStrength() {
    const { value } = this.strength;
    this.strength.ariaValueText = `${value} % of the tiles are drawn anew`;
    this.strength.nextElementSibling.textContent = `${value} % of its tiles anew`;
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
    this.frame.style.setProperty("--shape", `${picture.width / picture.height}`);
    // Tiles are those of one model: another one cannot keep them.
    this.make.hidden = this.model()?.revision !== parameters.revision;
    this.large.alt = picture.wording || this.#prompt;
    this.title.textContent = this.#prompt;
    this.place.textContent = `Picture ${this.index + 1} of ${pictures.length}`;
    this.done.textContent = "";
    const facts = SHOWN.map(([field, label]) => [label, parameters[field]]);
    facts.splice(1, 0, ["Candidate", picture.candidate], ["Score", picture.score.toFixed(3)]);
    if (picture.wording) facts.push(["Drawn as", picture.wording]);
    facts.push(...this.#origin());
    if (this.job.deleted) facts.push(["Kept until", new Date(this.job.deleted).toLocaleString()]);
    this.parameters.replaceChildren(
      ...facts.flatMap(([label, value]) => {
        const [term, text] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = label;
        text.append(typeof value === "number" ? Number(value.toPrecision(12)) : value);
        return [term, text];
      }),
    );
  }

  /** Returns what is known of the picture from which this one was made. */
  #origin() {
    const anew = drawnAnew(this.job);
    if (!anew) return [];
    const origin = originOf(this.job);
    if (!origin) return [["Drawn anew", anew]];
    const anchor = document.createElement("a");
    anchor.href = `#${origin.id}/${origin.candidate}`;
    anchor.textContent = "another picture";
    return [["Made from", anchor], ["Drawn anew", anew]];
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
