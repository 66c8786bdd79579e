// Pictures as files, and links to them.

import { at, send } from "./api.js";
import { address } from "./board.js";

const GAP = 8;

/** Saves a picture as it came from the service. */
export async function savePicture(picture, name) {
  const answer = await send(address(picture));
  save(await answer.blob(), `${name}.png`);
}

/** Saves a picture as WebP, without loss. */
export async function saveWebp(picture, name) {
  save(await painted([picture], 1), `${name}.webp`);
}

/** Saves all pictures side by side. */
export async function saveGrid(pictures, name) {
  save(await painted(pictures, Math.ceil(Math.sqrt(pictures.length)), "image/png"), `${name}-grid.png`);
}

/** Returns whether this browser can write WebP. */
export async function writesWebp() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  return (await blobOf(canvas, "image/webp"))?.type === "image/webp";
}

/** Returns the name of a picture's file, such as "a-blue-cat-1". */
export function fileName(prompt, index) {
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  const name = words.join("-").slice(0, 60);
  return index === undefined ? name : `${name}-${index + 1}`;
}

/** Copies text; returns whether that worked. (`navigator.clipboard` is missing on pages without TLS.) */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = document.createElement("textarea");
    box.value = text;
    // In the dialog, since everything outside cannot be focused while it is open.
    (document.querySelector("dialog[open]") ?? document.body).append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

/** Returns the link to a picture of a job. */
export const link = (id, candidate) => at(`#${id}${candidate === undefined ? "" : `/${candidate}`}`).href;

async function painted(pictures, across, type = "image/webp") {
  const images = await Promise.all(
    pictures.map(async (picture) => {
      const image = new Image();
      image.src = address(picture);
      await image.decode();
      return image;
    }),
  );
  const { naturalWidth: width, naturalHeight: height } = images[0];
  const gap = images.length > 1 ? GAP : 0;
  const canvas = document.createElement("canvas");
  canvas.width = across * (width + gap) - gap;
  canvas.height = Math.ceil(images.length / across) * (height + gap) - gap;
  const pen = canvas.getContext("2d");
  images.forEach((image, index) => {
    pen.drawImage(image, (index % across) * (width + gap), Math.floor(index / across) * (height + gap));
  });
  return blobOf(canvas, type);
}

const blobOf = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, 1));

function save(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}
