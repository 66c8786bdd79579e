// The wall: every mosaic that anyone is drawing right now.

import { passes } from "./api.js";
import { resumed } from "./jobs.js";
import { Mosaics } from "./mosaic.js";

/** Time for which a finished drawing stays. */
const STAY = 6000;
const FADE = 700;
const ENDS = { failed: "Failed", cancelled: "Stopped", expired: "Out of time", lost: "Gone" };

/** Whether the operator shows a wall: "on", "prompts", or "". */
export const shown = document.documentElement.dataset.wall;

export class Wall {
  /**
   * Takes the section.
   * @param handlers `lost` and `found` are called when the connection breaks and is there again, `announce` with what a
   *   screen reader shall hear.
   */
  constructor(section, { lost, found, announce }) {
    const find = (name) => section.querySelector(`[data-${name}]`);
    this.section = section;
    this.state = find("wall-state");
    this.list = find("drawings");
    this.still = find("still");
    this.handlers = { lost, found, announce };
    this.drawings = new Map();
    this.work = null;
  }

  get isOpen() {
    return this.work !== null;
  }

  /** Shows the wall as long as it is looked at. */
  open() {
    if (this.work) return;
    this.section.hidden = false;
    this.state.textContent = "Looking";
    this.work = new AbortController();
    this.#watch(this.work.signal);
  }

  close() {
    this.work?.abort();
    this.work = null;
    this.section.hidden = this.still.hidden = true;
    this.drawings.clear();
    this.list.replaceChildren();
  }

  async #watch(signal) {
    try {
      for await (const { name, data } of resumed("api/wall/events", signal)) {
        if (name === "lost") this.handlers.lost();
        else if (name === "found") this.handlers.found();
        else await this.#take(name, data);
        if (signal.aborted) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      this.state.textContent = passes(error) ? "" : `The wall cannot be shown: ${error.message}`;
    }
  }

  async #take(name, data) {
    const drawing = this.drawings.get(data.id);
    if (name === "wall") this.#whole(data.drawings);
    else if (name === "drawing") this.#add(data);
    else if (name === "rows") drawing?.mosaics.lay(data.runs);
    else if (name === "preview") await drawing?.mosaics.preview(data);
    else if (name === "ended" && drawing) this.#end(drawing, data);
    if (["wall", "drawing", "ended"].includes(name)) this.#tell();
  }

  /** Shows these drawings and no others. */
  #whole(drawings) {
    const ids = new Set(drawings.map(({ id }) => id));
    for (const [id, drawing] of this.drawings) if (!ids.has(id)) this.#remove(id, drawing);
    for (const each of drawings) if (!this.drawings.has(each.id)) this.#add(each);
  }

  #add(described) {
    const drawing = new Drawing(described);
    this.drawings.set(described.id, drawing);
    this.list.prepend(drawing.element);
  }

  #end(drawing, { id, state, chosen }) {
    drawing.end(state, chosen);
    setTimeout(() => this.#remove(id, drawing), STAY);
  }

  #remove(id, drawing) {
    if (this.drawings.get(id) !== drawing) return;
    this.drawings.delete(id);
    drawing.element.dataset.leaving = "";
    setTimeout(() => {
      drawing.element.remove();
      this.#tell();
    }, FADE);
  }

  #tell() {
    const count = [...this.drawings.values()].filter(({ ended }) => !ended).length;
    const text = count === 1 ? "1 drawing grows." : `${count} drawings grow.`;
    this.still.hidden = this.list.childElementCount > 0;
    this.state.textContent = count ? text : "";
    this.handlers.announce(count ? `The wall: ${text}` : "The wall: nothing is being drawn.");
  }
}

/** A job on the wall: all its mosaics, and the best of them at the end. */
class Drawing {
  constructor({ rows, columns, first, count, prompt }) {
    this.ended = false;
    this.mosaics = new Mosaics({ first, count, rows, columns });
    this.grid = document.createElement("div");
    this.grid.className = "mosaics";
    this.grid.role = "img";
    this.element = document.createElement("li");
    this.element.className = "drawing glass";
    this.element.append(this.grid);
    if (prompt) {
      const words = document.createElement("p");
      words.dir = "auto";
      words.textContent = prompt;
      this.element.append(words);
    }
    this.#show([...this.mosaics.values()]);
    this.grid.ariaLabel = `${count} pictures that are being drawn`;
  }

  /** Shows how it has ended: the best pictures, or that there are none. */
  end(state, chosen) {
    this.ended = true;
    this.element.dataset.state = state;
    const best = chosen.map((candidate) => this.mosaics.get(candidate)).filter(Boolean);
    this.grid.ariaLabel = best.length ? `The best ${best.length} pictures` : (ENDS[state] ?? state);
    if (best.length) this.#show(best);
  }

  #show(mosaics) {
    this.grid.style.setProperty("--across", Math.ceil(Math.sqrt(mosaics.length)));
    this.grid.replaceChildren(...mosaics.map(({ canvas }) => canvas));
  }
}
