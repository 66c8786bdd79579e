// The brush: marks tiles of a picture in the large view, by mouse, touch or keys, and has them drawn anew.

const MAX_UNDO = 100;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Brush {
  /**
   * Takes the grid over the picture, and the form beside it.
   * @param handlers `draw` is called with the prompt and the positions of the tiles; `left` once the brush is put away.
   */
  constructor(grid, form, { draw, left }) {
    const find = (name) => form.querySelector(`[data-${name}]`);
    this.grid = grid;
    this.form = form;
    this.prompt = find("brush-prompt");
    this.count = find("brush-count");
    this.refusal = find("brush-refusal");
    this.undoing = find("brush-undo");
    this.draw = draw;
    this.left = left;
    this.marked = new Set();
    this.before = [];
    /** The tile at which the pointer was, and whether it marks or clears; null while it is up. */
    this.stroke = null;
    this.undoing.addEventListener("click", () => this.#undo());
    find("brush-invert").addEventListener("click", () => this.#change(this.#others()));
    find("brush-clear").addEventListener("click", () => this.#change(new Set()));
    find("brush-leave").addEventListener("click", () => this.leave());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.prompt.addEventListener("input", () => this.#refuse(""));
    grid.addEventListener("keydown", (event) => this.#key(event));
    grid.addEventListener("focusin", ({ target }) => target.role === "gridcell" && this.#enter(Number(target.dataset.tile)));
    grid.addEventListener("pointerdown", (event) => this.#press(event));
    grid.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => this.#lift());
  }

  get isOpen() {
    return !this.grid.hidden;
  }

  /** Lays the grid of so many rows and columns over the picture. */
  open({ rows, columns, prompt }) {
    [this.rows, this.columns] = [rows, columns];
    this.marked.clear();
    this.before = [];
    this.cells = Array.from({ length: rows * columns }, (_, tile) => this.#cell(tile));
    const lines = Array.from({ length: rows }, (_, row) => {
      const line = document.createElement("div");
      line.role = "row";
      line.append(...this.cells.slice(row * columns, (row + 1) * columns));
      return line;
    });
    this.grid.replaceChildren(...lines);
    this.prompt.value = prompt;
    this.grid.hidden = this.form.hidden = false;
    this.#refuse("");
    this.#told();
    this.active = Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    this.cells[this.active].focus({ preventScroll: true });
    // On a small screen, the button that was pressed is below the picture.
    this.grid.scrollIntoView({ block: "nearest" });
  }

  /** Puts the brush away. */
  leave() {
    if (!this.isOpen) return;
    this.stroke = null;
    this.grid.hidden = this.form.hidden = true;
    this.grid.replaceChildren();
    this.left();
  }

  #cell(tile) {
    const cell = document.createElement("div");
    cell.role = "gridcell";
    cell.tabIndex = -1;
    cell.dataset.tile = tile;
    cell.ariaSelected = "false";
    cell.ariaLabel = `Row ${Math.floor(tile / this.columns) + 1}, column ${(tile % this.columns) + 1}`;
    return cell;
  }

  #enter(tile) {
    this.cells[this.active].tabIndex = -1;
    this.active = tile;
    this.cells[tile].tabIndex = 0;
  }

  #key(event) {
    const { key, shiftKey } = event;
    const control = event.ctrlKey || event.metaKey;
    const [row, column] = [Math.floor(this.active / this.columns), this.active % this.columns];
    let to = null;
    if (key in STEPS) {
      const [down, right] = STEPS[key];
      to = [clamp(row + down, this.rows), clamp(column + right, this.columns)];
    } else if (key === "Home") to = [control ? 0 : row, 0];
    else if (key === "End") to = [control ? this.rows - 1 : row, this.columns - 1];
    if (to) {
      const tile = to[0] * this.columns + to[1];
      // A line by keys, as a stroke of the pointer is one.
      if (shiftKey) this.#change(new Set([...this.marked, ...this.#between(this.active, tile)]));
      this.cells[tile].focus();
    } else if (key === " ") this.#change(toggled(this.marked, this.active));
    else if (key === "Enter") this.#submit();
    else if (key === "z" && control) this.#undo();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #press(event) {
    if (event.button !== 0 || this.stroke) return;
    event.preventDefault();
    const tile = this.#at(event);
    this.grid.setPointerCapture(event.pointerId);
    this.cells[tile].focus({ preventScroll: true });
    this.#remember();
    this.stroke = { tile, marks: !this.marked.has(tile) };
    this.#paint(tile);
  }

  #drag(event) {
    if (!this.stroke) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.#paint(this.#at(each));
  }

  #lift() {
    if (!this.stroke) return;
    this.stroke = null;
    this.#told();
  }

  /** Paints from the last tile of the stroke to another one. */
  #paint(tile) {
    const { tile: from, marks } = this.stroke;
    for (const each of this.#between(from, tile)) {
      if (marks) this.marked.add(each);
      else this.marked.delete(each);
    }
    this.stroke.tile = tile;
    this.#show();
  }

  /** Returns the tile under the pointer; the nearest one beside the picture. */
  #at({ clientX, clientY }) {
    const { left, top, width, height } = this.grid.getBoundingClientRect();
    const row = clamp(Math.floor(((clientY - top) / height) * this.rows), this.rows);
    return row * this.columns + clamp(Math.floor(((clientX - left) / width) * this.columns), this.columns);
  }

  /** Returns the tiles on the line between two. */
  #between(from, to) {
    const place = (tile) => [Math.floor(tile / this.columns), tile % this.columns];
    const [[row, column], [lastRow, lastColumn]] = [place(from), place(to)];
    const steps = Math.max(Math.abs(lastRow - row), Math.abs(lastColumn - column));
    return Array.from({ length: steps + 1 }, (_, step) => {
      const share = steps ? step / steps : 0;
      return Math.round(row + (lastRow - row) * share) * this.columns + Math.round(column + (lastColumn - column) * share);
    });
  }

  #others() {
    return new Set([...this.cells.keys()].filter((tile) => !this.marked.has(tile)));
  }

  #remember() {
    this.before.push(new Set(this.marked));
    if (this.before.length > MAX_UNDO) this.before.shift();
  }

  #change(marked) {
    this.#remember();
    this.marked = marked;
    this.#told();
  }

  #undo() {
    this.marked = this.before.pop() ?? this.marked;
    this.#told();
    if (this.undoing.disabled && document.activeElement === document.body) this.cells[this.active].focus();
  }

  #show() {
    this.cells.forEach((cell, tile) => {
      const is = String(this.marked.has(tile));
      if (cell.ariaSelected !== is) cell.ariaSelected = is;
    });
  }

  /** Shows what is marked, and says it: once for a stroke. */
  #told() {
    this.#show();
    const { size } = this.marked;
    this.count.textContent = size ? `${size} of ${this.cells.length} tiles are drawn anew.` : "No tile is marked.";
    this.undoing.disabled = this.before.length === 0;
    this.#refuse("");
  }

  #refuse(text) {
    this.refusal.textContent = text;
    if (text) this.prompt.setAttribute("aria-invalid", String(!this.prompt.value.trim()));
    else this.prompt.removeAttribute("aria-invalid");
  }

  #submit() {
    const { size } = this.marked;
    const prompt = this.prompt.value.trim();
    if (size === 0) this.#refuse("Mark the tiles to draw anew.");
    else if (size === this.cells.length) this.#refuse("Leave at least one tile as it is.");
    else if (!prompt) this.#refuse("Say what the picture shows.");
    else this.draw(prompt, [...this.marked].sort((one, other) => one - other));
  }
}

const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

function toggled(tiles, tile) {
  const changed = new Set(tiles);
  if (!changed.delete(tile)) changed.add(tile);
  return changed;
}
