/**
 * Calls a server of datasette-clip from any page: classifies images, embeds images and texts. No dependencies.
 *
 * An image is a File, Blob, ImageBitmap, HTMLImageElement or canvas. If the server refuses a call, its sentence is thrown as an Error.
 */

const LARGEST = 40000; // bytes of a JPEG, so that base64url of it fits a URL of 60,000

/** The part of an image that CLIP looks at: its central square, upright, on white, `side` pixels wide, as a JPEG Blob. */
export async function shrink(image, side = 224) {
  let from = image instanceof Blob ? await createImageBitmap(image) : image;
  const [width, height] = [from.naturalWidth || from.width, from.naturalHeight || from.height];
  let square = Math.min(width, height);
  let [x, y] = [(width - square) / 2, (height - square) / 2];
  do {
    const to = square / 2 > side ? Math.ceil(square / 2) : side; // a canvas averages 4 pixels at most, so halve at most
    const canvas = Object.assign(document.createElement("canvas"), { width: to, height: to });
    const context = Object.assign(canvas.getContext("2d"), { fillStyle: "white" });
    context.fillRect(0, 0, to, to);
    context.drawImage(from, x, y, square, square, 0, 0, to, to);
    [from, square, x, y] = [canvas, to, 0, 0];
  } while (square !== side);
  for (const quality of [0.9, 0.7, 0.4]) {
    const jpeg = await new Promise((done) => from.toBlob(done, "image/jpeg", quality));
    if (jpeg.size <= LARGEST || quality === 0.4) return jpeg;
  }
}

/** The bytes of a Blob as base64url, as `img=` takes them. */
export async function base64url(blob) {
  const letters = Array.from(new Uint8Array(await blob.arrayBuffer()), (byte) => String.fromCharCode(byte));
  return btoa(letters.join("")).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

// Of a private instance: every function takes its `token`, which is sent as a header and never in a URL.

/**
 * The labels that fit an image best: {matches: [{label, probability, cosine}...], none_of_these, vector, ...}.
 * `scores` is "sigmoid" where each probability is of its label alone; without it they are shares among the labels.
 *
 * labels: the name of a label set, or a list of labels; without it the server's default set. templates: a list of prompt
 * templates for a list of labels. k: how many labels come back. method: GET, with the image in the URL, or POST. The
 * image may also be the `vector` of an earlier response, to try other labels.
 */
export async function classify(server, image, { labels, templates = [], k = 5, method = "GET", token } = {}) {
  const list = Array.isArray(labels) ? JSON.stringify(labels) : labels;
  const fields = [...(list ? [["labels", list]] : []), ...templates.map((template) => ["templates", template]), ["k", k]];
  const item = typeof image === "string" ? ["vector", image] : ["img", await shrink(image)];
  const { results, ...common } = await ask(server, "classify", [item, ...fields], method, token);
  return { ...common, ...results[0] };
}

/** The embedding of an image or of a text (a string): a Float32Array; of norm 1 where `normalize` is true. */
export async function embed(server, item, { normalize = false, method = "GET", token } = {}) {
  const field = typeof item === "string" ? ["text", item] : ["img", await shrink(item)];
  const fields = [field, ["format", "base64"], ["normalize", normalize ? 1 : 0]];
  const { results } = await ask(server, "embed", fields, method, token);
  return new Float32Array(Uint8Array.from(atob(results[0].embedding), (letter) => letter.charCodeAt(0)).buffer);
}

async function ask(server, what, fields, method, token) {
  const url = new URL(`-/clip/${what}.json`, `${server}/`.replace(/\/+$/, "/"));
  const body = method === "GET" ? undefined : new FormData();
  for (const [name, value] of fields) {
    if (body) body.append(name, value);
    else url.searchParams.append(name, value instanceof Blob ? await base64url(value) : value);
  }
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(url, { method, body, headers });
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}, not with JSON` }));
  if (!answer.ok) throw new Error(answer.error);
  return answer;
}
