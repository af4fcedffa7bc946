/**
 * Calls a server of datasette-clip from any page: classifies images, embeds images and texts. No dependencies.
 *
 * An image is a File, Blob, ImageBitmap, HTMLImageElement or canvas. If the server refuses a call, its sentence is thrown as an Error.
 */

const LARGEST = 40000; // bytes of a JPEG, so that base64url of it fits a URL of 60,000

/**
 * What CLIP looks at of an image, upright, on white, as a JPEG Blob. By the `resize` of the model's preprocessing:
 * "shortest" is its central square, "squash" all of it made a square, both `side` pixels wide, and "longest" all of it in
 * its shape, `side` pixels long.
 */
export async function shrink(image, side = 224, resize = "shortest") {
  let from = image instanceof Blob ? await createImageBitmap(image) : image;
  const [width, height] = [from.naturalWidth || from.width, from.naturalHeight || from.height];
  const square = Math.min(width, height);
  let [across, down] = resize === "shortest" ? [square, square] : [width, height];
  let [x, y] = [(width - across) / 2, (height - down) / 2];
  const longest = resize === "longest" ? Math.max(width, height) : 0;
  const target = (length) => (longest ? Math.max(1, Math.round((side * length) / longest)) : side);
  const [right, bottom] = [target(across), target(down)];
  const step = (length, to) => (length / 2 > to ? Math.ceil(length / 2) : to); // a canvas averages 4 pixels at most
  do {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: step(across, right), height: step(down, bottom) });
    const context = Object.assign(canvas.getContext("2d"), { fillStyle: "white" });
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(from, x, y, across, down, 0, 0, canvas.width, canvas.height);
    [from, across, down, x, y] = [canvas, canvas.width, canvas.height, 0, 0];
  } while (across !== right || down !== bottom);
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
// `side` and `resize` are as `shrink` has them, of the server's model.

/**
 * The labels that fit an image best: {matches: [{label, probability, cosine}...], none_of_these, vector, ...}.
 * `scores` is "sigmoid" where each probability is of its label alone; without it they are shares among the labels.
 *
 * labels: the name of a label set, or a list of labels; without it the server's default set. templates: a list of prompt
 * templates for a list of labels. k: how many labels come back. method: GET, with the image in the URL, or POST. The
 * image may also be the `vector` of an earlier response, to try other labels.
 */
export async function classify(server, image, { labels, templates = [], k = 5, method = "GET", token, side, resize } = {}) {
  const list = Array.isArray(labels) ? JSON.stringify(labels) : labels;
  const fields = [...(list ? [["labels", list]] : []), ...templates.map((template) => ["templates", template]), ["k", k]];
  const item = typeof image === "string" ? ["vector", image] : ["img", await shrink(image, side, resize)];
  const { results, ...common } = await ask(server, "classify", [item, ...fields], method, token);
  return { ...common, ...results[0] };
}

/** The embedding of an image or of a text (a string): a Float32Array; of norm 1 where `normalize` is true. */
export async function embed(server, item, { normalize = false, method = "GET", token, side, resize } = {}) {
  const field = typeof item === "string" ? ["text", item] : ["img", await shrink(item, side, resize)];
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
