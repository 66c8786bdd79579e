// A picture while it is laid: glass without colour for tiles that are drawn, and colours once they are decoded.

const SIDE = 256;
/** Width of the seam around a tile, as a share of the tile. */
const SEAM = 0.05;

const dark = matchMedia("(prefers-color-scheme: dark)");

class Mosaic {
  /**
   * Makes the canvas of a picture with so many rows and columns of tiles.
   * @param origin the picture of which tiles are kept, see `loadOrigin`; null without one.
   */
  constructor({ rows, columns, origin = null }) {
    this.rows = rows;
    this.columns = columns;
    this.origin = origin;
    this.canvas = document.createElement("canvas");
    this.canvas.width = SIDE;
    this.canvas.height = Math.round((SIDE * rows) / columns);
    this.canvas.setAttribute("aria-hidden", "true");
    this.pen = this.canvas.getContext("2d");
    this.tile = SIDE / columns;
    /** Rows whose colours are shown. */
    this.coloured = 0;
    if (origin?.redrawn) this.#lacking(origin);
  }

  /** Lays tiles. */
  lay(start, tokens) {
    tokens.forEach((token, offset) => {
      const place = start + offset;
      const row = Math.floor(place / this.columns);
      if (row < this.coloured) return;
      if (this.#isKept(place, token)) this.#piece(row, place % this.columns);
      else this.#glass(row, place % this.columns, token);
    });
  }

  /** Shows the colours of the upper rows. */
  colour(picture, rows) {
    if (rows < this.coloured) return;
    const { pen, canvas } = this;
    const height = canvas.height * (rows / this.rows);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, 0, 0, picture.width, picture.height * (rows / this.rows), 0, 0, canvas.width, height);
    this.#seams(rows);
    this.coloured = rows;
  }

  /** Returns whether a tile shows what it showed before. */
  #isKept(place, token) {
    const { origin } = this;
    if (!origin) return false;
    return origin.redrawn ? !origin.redrawn.has(place) : origin.tokens[place] === token;
  }

  /** Shows the picture of which some tiles are missing. */
  #lacking({ image, redrawn }) {
    const { pen, canvas, tile, columns } = this;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    this.#seams(this.rows);
    for (const place of redrawn) pen.clearRect((place % columns) * tile, Math.floor(place / columns) * tile, tile, tile);
  }

  /** Lays a tile of the picture that the job has started from. */
  #piece(row, column) {
    const { pen, tile } = this;
    const { image } = this.origin;
    const [width, height] = [image.naturalWidth / this.columns, image.naturalHeight / this.rows];
    const [x, y] = [column * tile, row * tile];
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, column * width, row * height, width, height, x, y, tile, tile);
    pen.strokeStyle = seam();
    pen.strokeRect(x, y, tile, tile);
  }

  #glass(row, column, token) {
    const { pen, tile } = this;
    // The shade follows from the token, so equal tiles look alike.
    const shade = ((token * 2654435761) >>> 0) / 2 ** 32;
    const [x, y, gap] = [column * tile, row * tile, tile * SEAM];
    pen.clearRect(x, y, tile, tile);
    pen.beginPath();
    pen.roundRect(x + gap, y + gap, tile - 2 * gap, tile - 2 * gap, tile * 0.12);
    const light = dark.matches ? 26 + shade * 30 : 66 + shade * 26;
    const shine = pen.createLinearGradient(x, y, x + tile, y + tile);
    shine.addColorStop(0, `hsl(42 22% ${light + 9}%)`);
    shine.addColorStop(0.5, `hsl(42 16% ${light}%)`);
    shine.addColorStop(1, `hsl(220 14% ${light - 6}%)`);
    pen.fillStyle = shine;
    pen.fill();
  }

  #seams(rows) {
    const { pen, canvas, tile } = this;
    pen.fillStyle = seam();
    for (let row = 0; row <= rows; row += 1) pen.fillRect(0, row * tile - 0.5, canvas.width, 1);
    for (let column = 1; column < this.columns; column += 1) pen.fillRect(column * tile - 0.5, 0, 1, rows * tile);
  }
}

/** Returns the picture of an event, which must be closed. */
function pictureOf({ data, media_type: type }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type }));
}

const seam = () => (dark.matches ? "rgb(0 0 0 / 0.28)" : "rgb(255 255 255 / 0.34)");

/** The mosaics of a job by candidate, of which there are `count` from `first` on. */
export class Mosaics extends Map {
  constructor({ first = 0, count = 0, ...sizes } = {}) {
    super();
    for (let each = first; each < first + count; each += 1) this.set(each, new Mosaic(sizes));
  }

  /** Lays new tiles. */
  lay(runs) {
    for (const { candidate, start, tokens } of runs) this.get(candidate)?.lay(start, tokens);
  }

  /** Shows the colours of an unfinished picture. */
  async preview(data) {
    const mosaic = this.get(data.candidate);
    if (!mosaic) return;
    const picture = await pictureOf(data);
    mosaic.colour(picture, data.rows_drawn);
    picture.close();
  }
}
