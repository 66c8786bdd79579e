// What the page says: the state in a line, how the prompt was read, what can be done, and what a screen reader hears.

/** Pause between two messages for screen readers. */
const QUIET = 1500;
const SHOWN = 4000;

export class Told {
  constructor(root) {
    const find = (name) => root.querySelector(`[data-${name}]`);
    this.state = find("state");
    this.reading = find("reading");
    this.acts = find("acts");
    this.line = find("line");
    this.live = find("live");
    this.said = "";
    this.next = null;
    this.timer = null;
  }

  /** Shows the state, and says it if `aloud`; `mood` is its colour, such as "trouble". */
  show(text, { mood = "", acts = [], aloud = false } = {}) {
    if (this.state.textContent !== text) this.state.textContent = text;
    this.state.dataset.mood = mood;
    this.acts.replaceChildren(...acts.map(([label, run]) => button(label, run)));
    if (aloud) this.announce(`${text}.`);
  }

  /** Says something to screen readers: once, and never in quick succession. */
  announce(text) {
    if (text === this.said) return;
    this.said = text;
    this.next = text;
    if (this.timer) return;
    const speak = () => {
      this.timer = this.next === null ? null : setTimeout(speak, QUIET);
      if (this.next !== null) this.live.textContent = this.next;
      this.next = null;
    };
    speak();
  }

  /** Shows how the model has read a prompt: unknown words are marked, with what is drawn instead. */
  read(prompt, reading) {
    const odd = [...(reading?.unknown_words ?? []), ...(reading?.left_out_words ?? [])];
    this.reading.replaceChildren();
    if (!reading?.notice && !reading?.cut && odd.length === 0) return;
    const drawn = document.createElement("q");
    drawn.textContent = reading.effective_prompt;
    const told = odd.length ? "these words are unknown or do not fit here; drawn instead: " : "drawn: ";
    this.reading.append(...marked(prompt, odd), " — ", told, drawn);
    if (reading.cut) this.reading.append(" The end of the prompt is too long to be read.");
  }

  /** Shows that the connection is lost, or there again; "" hides it. */
  connection(text, { passing = false } = {}) {
    clearTimeout(this.hiding);
    this.line.textContent = text;
    this.line.hidden = !text;
    if (text) this.announce(text);
    if (passing) this.hiding = setTimeout(() => this.connection(""), SHOWN);
  }
}

function button(label, run) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = label;
  made.addEventListener("click", run);
  return made;
}

/** Returns a text as a part of a regular expression. */
export const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Returns a prompt as nodes, with some of its words marked. */
function marked(prompt, words) {
  if (words.length === 0) return [prompt];
  const each = words
    .sort((one, other) => other.length - one.length)
    .map((word) => escaped(word).replace(/ /g, "[\\s-]+"));
  const parts = prompt.split(new RegExp(`(?<![\\p{L}\\p{N}])(${each.join("|")})(?![\\p{L}\\p{N}])`, "giu"));
  return parts.map((part, index) => {
    if (index % 2 === 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

/** Returns a time in words, such as "about 2 minutes". */
export function about(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 10) return `${Math.round(seconds)} seconds`;
  if (seconds < 90) return `about ${Math.round(seconds / 5) * 5} seconds`;
  return `about ${Math.round(seconds / 60)} minutes`;
}
