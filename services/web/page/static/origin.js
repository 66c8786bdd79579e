// The picture that a job has started from: a variation keeps a share of its tiles, an edit all but some.

import { address } from "./board.js";
import { get } from "./jobs.js";

/** The label of a job that names the picture, as "JOB/CANDIDATE". */
const LABEL = "page/origin";

/** Returns the parameters that start from a picture of a job; `kept` says which part of it is kept. */
export const startingFrom = (job, { candidate }, kept) => ({
  initial_image: { job_id: job.id, candidate, ...kept },
  labels: { [LABEL]: `${job.id}/${candidate}` },
});

/** Returns the parameters that draw what a job has drawn once more, with another seed. */
export function repeated({ parameters: { prompt, initial_image: image }, labels }) {
  const named = labels?.[LABEL] ? { labels: { [LABEL]: labels[LABEL] } } : {};
  return image ? { prompt, initial_image: image, ...named } : { prompt };
}

/** Returns the job and the candidate that a job has started from; null if that is not known. */
export function originOf({ labels, parameters }) {
  const [, id, candidate] = /^([A-Za-z0-9-]{1,64})\/(\d{1,9})$/.exec(labels?.[LABEL] ?? "") ?? [];
  return id && parameters.initial_image ? { id, candidate: Number(candidate) } : null;
}

/** Returns what is drawn anew, such as "12 tiles"; "" for a job that draws whole pictures. */
export function drawnAnew({ parameters: { initial_image: image } }) {
  if (!image) return "";
  if (image.strength) return `${Math.round(image.strength * 100)} % of the tiles`;
  const count = image.redrawn_tiles?.length;
  if (count) return count === 1 ? "1 tile" : `${count} tiles`;
  return `all rows but ${image.keep_rows}`;
}

/** Returns the picture that a job has started from, with its tokens; null if it is not kept, or not known. */
export async function loadOrigin(job, signal) {
  const origin = originOf(job);
  if (!origin) return null;
  try {
    const { pictures = [] } = await get(origin.id, signal);
    const picture = pictures.find(({ candidate }) => candidate === origin.candidate);
    if (!picture) return null;
    const image = new Image();
    image.src = address(picture);
    await image.decode();
    const { tokens, redrawn_tiles: redrawn } = job.parameters.initial_image;
    return { image, tokens, redrawn: redrawn && new Set(redrawn) };
  } catch {
    return null;
  }
}
