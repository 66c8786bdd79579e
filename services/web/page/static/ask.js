// The field: the prompt, and suggestions of words that the model knows.

import { escaped } from "./told.js";

const MAX_SHOWN = 7;
/** Words of a term, such as "in front of". */
const MAX_WORDS = 3;

export class Ask {
  /** Takes the form; `draw` is called with the prompt. */
  constructor(form, draw) {
    this.field = form.querySelector("#prompt");
    this.list = form.querySelector("#words");
    this.refusal = form.querySelector("[data-refusal]");
    this.drawing = form.querySelector("[data-draw]");
    this.stopping = form.querySelector("[data-stop]");
    this.known = [];
    this.active = -1;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#close();
      draw(this.field.value);
    });
    this.field.addEventListener("input", () => {
      this.refuse("");
      this.#suggest();
    });
    this.field.addEventListener("keydown", (event) => this.#key(event, form));
    this.field.addEventListener("blur", () => this.#close());
    this.list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option) this.#take(option.textContent);
    });
  }

  get text() {
    return this.field.value;
  }

  set text(text) {
    this.field.value = text;
    this.refuse("");
    this.#close();
  }

  /** Offers the words of a model. */
  offer({ vocabulary, prompt_characters: length }) {
    this.field.maxLength = length;
    const words = Object.values(vocabulary.groups).flat();
    this.known = [...new Set(words)].sort((one, other) => one.length - other.length || one.localeCompare(other));
  }

  /** Shows why a prompt was refused; "" when it is not. */
  refuse(text) {
    this.refusal.textContent = text;
    if (text) this.field.setAttribute("aria-invalid", "true");
    else this.field.removeAttribute("aria-invalid");
  }

  /** Shows that pictures are being drawn, which can be stopped. */
  busy(is) {
    const focused = document.activeElement;
    this.drawing.hidden = is;
    this.stopping.hidden = !is;
    // A button that goes must not take the keyboard's place with it.
    if (focused === this.drawing && is) this.stopping.focus();
    if (focused === this.stopping && !is) this.drawing.focus();
  }

  #key(event, form) {
    const { key } = event;
    if (event.isComposing) return;
    if (key === "Enter") {
      if (this.active >= 0 && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        this.#take(this.list.children[this.active].textContent);
      } else if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        form.requestSubmit();
      }
    } else if ((key === "ArrowDown" || key === "ArrowUp") && !this.list.hidden) {
      event.preventDefault();
      const count = this.list.children.length;
      const from = this.active < 0 && key === "ArrowUp" ? 0 : this.active;
      this.#mark((from + (key === "ArrowDown" ? 1 : -1) + count) % count);
    } else if (key === "Escape" && !this.list.hidden) {
      event.stopPropagation();
      this.#close();
    }
  }

  /** Returns the end of the text that may become a word, and the words that begin with it. */
  #matches() {
    const { value, selectionEnd } = this.field;
    if (selectionEnd !== value.length) return { start: "", found: [] };
    const words = value.toLowerCase().split(/\s+/);
    for (let count = Math.min(MAX_WORDS, words.length); count > 0; count -= 1) {
      const start = words.slice(-count).join(" ");
      const found = start.trim() === start && start ? this.known.filter((word) => word.startsWith(start)) : [];
      if (found.length > 0) return { start, found: found.filter((word) => word !== start) };
    }
    return { start: "", found: [] };
  }

  #suggest() {
    const { found } = this.#matches();
    const options = found.slice(0, MAX_SHOWN).map((word, index) => {
      const option = document.createElement("li");
      option.id = `word-${index}`;
      option.role = "option";
      option.ariaSelected = "false";
      option.textContent = word;
      return option;
    });
    this.list.replaceChildren(...options);
    this.list.hidden = options.length === 0;
    this.field.ariaExpanded = String(options.length > 0);
    this.#mark(-1);
  }

  #mark(index) {
    this.active = index;
    [...this.list.children].forEach((option, place) => (option.ariaSelected = String(place === index)));
    if (index < 0) this.field.removeAttribute("aria-activedescendant");
    else this.field.setAttribute("aria-activedescendant", this.list.children[index].id);
  }

  #take(word) {
    const { start } = this.#matches();
    const { value } = this.field;
    // Spaces in the text may be several where the word has one.
    const pattern = start.split(" ").map(escaped).join("\\s+");
    this.field.value = `${value.replace(new RegExp(`${pattern}$`, "i"), "")}${word} `;
    this.#close();
  }

  #close() {
    this.list.hidden = true;
    this.field.ariaExpanded = "false";
    this.#mark(-1);
  }
}

/** Returns a few prompts that a model can draw. */
export function examples(model) {
  const { things = [], colours = [], backgrounds = [] } = model?.vocabulary?.groups ?? {};
  if (!things.length || !colours.length) {
    return ["an armchair in the shape of an avocado", "a lighthouse at dawn, watercolour", "a robot reading a newspaper"];
  }
  const any = (words) => words[Math.floor(Math.random() * words.length)];
  const one = (noun) => `${/^[aeiou]/.test(noun) && !noun.startsWith("uni") ? "an" : "a"} ${noun}`;
  return [0, 1, 2].map(() => {
    const scene = backgrounds.length ? ` on ${one(any(backgrounds))} background` : "";
    return `${one(`${any(colours)} ${any(things)}`)}${scene}`;
  });
}
