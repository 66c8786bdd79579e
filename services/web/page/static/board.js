// The board: nine empty places, all candidates while they are drawn, and the best nine.

import { at } from "./api.js";
import { Mosaics } from "./mosaic.js";

/** Number of pictures that are shown. */
export const PLACES = 9;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const GLIDE = { duration: 620, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" };

/** Returns the path of a picture at this service. (Its URL names the service as other clients reach it.) */
export function address(picture) {
  const { pathname, search } = new URL(picture.url, document.baseURI);
  return at(pathname + search).href;
}

export class Board {
  /** Shows pictures in a list; `open` is called with the index of a picture that was chosen. */
  constructor(list, open) {
    this.list = list;
    this.open = open;
    this.mosaics = new Mosaics();
    this.clear();
  }

  /** Shows empty places. */
  clear() {
    this.mosaics.clear();
    this.#show("empty", Array.from({ length: PLACES }, () => document.createElement("li")));
  }

  /** Makes room for candidates; keeps them if they are there. */
  begin({ first, count, rows, columns, origin }) {
    if (this.list.dataset.mode === "laying" && this.mosaics.size === count && this.mosaics.has(first)) return;
    this.mosaics = new Mosaics({ first, count, rows, columns, origin });
    const cells = [...this.mosaics].map(([candidate, { canvas }]) => {
      const cell = document.createElement("li");
      cell.dataset.candidate = candidate;
      cell.append(canvas);
      return cell;
    });
    this.#show("laying", cells);
  }

  /** Lays new tiles. */
  lay(runs) {
    this.mosaics.lay(runs);
  }

  /** Shows the colours of unfinished pictures. */
  preview(data) {
    return this.mosaics.preview(data);
  }

  /** Dims what is there, since nothing more will come. */
  end() {
    this.list.dataset.ended = "";
  }

  /** Moves the best candidates into their places. */
  async choose(pictures, prompt) {
    const images = pictures.map((picture, index) => this.#image(picture, index, pictures.length, prompt));
    await Promise.allSettled(images.map((image) => image.decode()));
    const before = new Map();
    if (this.list.dataset.mode === "laying" && !calm.matches && !document.hidden) {
      const kept = new Set(pictures.map(({ candidate }) => String(candidate)));
      const others = [...this.list.children].filter((cell) => !kept.has(cell.dataset.candidate));
      const fading = others.map(
        (cell) => cell.animate({ opacity: 0, transform: "scale(0.7)" }, { duration: 260, fill: "forwards" }).finished,
      );
      await Promise.allSettled(fading);
      for (const cell of this.list.children) before.set(cell.dataset.candidate, cell.getBoundingClientRect());
    }
    this.mosaics.clear();
    const cells = pictures.map((picture, index) => this.#place(picture, index, images[index]));
    this.#show("chosen", cells);
    cells.forEach((cell, index) => glide(cell, before.get(String(pictures[index].candidate))));
  }

  #image(picture, index, count, prompt) {
    const image = new Image(picture.width, picture.height);
    image.alt = `Picture ${index + 1} of ${count}: ${picture.wording || prompt}`;
    image.src = address(picture);
    return image;
  }

  #place(picture, index, image) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(image);
    button.addEventListener("click", () => this.open(index));
    const cell = document.createElement("li");
    cell.dataset.candidate = picture.candidate;
    cell.append(button);
    return cell;
  }

  #show(mode, cells) {
    delete this.list.dataset.ended;
    this.list.dataset.mode = mode;
    this.list.style.setProperty("--across", Math.ceil(Math.sqrt(cells.length)));
    this.list.replaceChildren(...cells);
  }
}

function glide(cell, from) {
  if (!from) return;
  const to = cell.getBoundingClientRect();
  const scale = from.width / to.width;
  const start = `translate(${from.left - to.left}px, ${from.top - to.top}px) scale(${scale})`;
  cell.animate([{ transform: start, transformOrigin: "0 0" }, { transform: "none", transformOrigin: "0 0" }], GLIDE);
}
