/** Sends the form of /-/clip/classify or /-/clip/compare whenever it changes, and shows the response in the page. */
import { shrink } from "./clip.js";
import { onPictures } from "./picking.js";

const KEPT = "clip picture "; // before a vector: the key of its picture in sessionStorage
const TYPING_MS = 300; // from the last key until labels and texts are sent
const form = document.querySelector(".clip-form");
const result = document.querySelector("#clip-result");
const status = document.querySelector("#clip-status");
const several = "several" in form.dataset;
let pending = []; // [name, Blob] of pictures that have no response yet
let newest = new AbortController(); // of the newest request; responses to older ones are not shown
let timer;
let takes = 0;
let chosenSet = form.elements.labels?.value || form.elements.labels?.options[0].value;
let replaced = []; // nodes that a preview has replaced

/** Shrinks pictures to what CLIP sees and sends them. A file that this browser cannot read is sent as it is. */
async function take(files, from) {
  for (const input of form.querySelectorAll("input[type=file]")) if (input !== from) input.value = "";
  const mine = ++takes;
  const { side, resize } = form.dataset;
  const taken = [];
  for (const file of [...files].slice(several ? 0 : -1)) {
    taken.push([file.name, await shrink(file, Number(side), resize).catch(() => file)]);
  }
  if (!several && mine !== takes) return; // the user has chosen another one meanwhile
  pending = several ? [...pending, ...taken] : taken;
  if (!several && taken[0][1].type === "image/jpeg") preview(...taken[0]);
  await send();
  result.scrollIntoView({ block: "nearest" }); // it is below the form on a telephone
}

/** Shows a picture before the server has responded. */
function preview(name, blob) {
  const figure = document.createElement("figure");
  const image = Object.assign(new Image(224, 224), { src: URL.createObjectURL(blob), alt: `${name}, as CLIP will look at it` });
  figure.className = "clip-picture";
  figure.append(image);
  if (!replaced.length) replaced = [...result.childNodes];
  result.replaceChildren(...result.querySelectorAll("[type=hidden]"), figure);
}

/** Sends the form with the pending pictures. Of pictures that the server has seen it sends only the vectors. */
async function send(button) {
  clearTimeout(timer);
  newest.abort();
  const mine = (newest = new AbortController());
  const body = new FormData(form);
  if (button?.name) body.append(button.name, button.value);
  body.delete("image");
  const pictures = body.getAll("img").map((img, at) => [body.getAll("vector")[at], img]);
  body.delete("img");
  const seen = !form.elements.model || form.elements.model.value === form.elements.vectors_of?.value; // by this model
  for (const [vector, img] of pictures) body.append("img", vector && seen ? "" : img);
  for (const [name, blob] of pending) body.append("image", blob, name);
  busy(true);
  const begun = performance.now();
  try {
    const response = await fetch(form.action, { method: "POST", body, signal: mine.signal });
    show(response, await response.text(), new Map(pictures), performance.now() - begun);
  } catch (error) {
    if (mine.signal.aborted) return;
    say(`The server cannot be reached (${error.message}). Nothing is lost: send it again.`);
  }
  if (mine === newest) busy(false);
}

/** Shows a response in place of the previous one, or only its sentence if it is not this page. */
function show(response, text, kept, ms) {
  const answered = new DOMParser().parseFromString(text, "text/html");
  const answer = answered.querySelector("#clip-result");
  if (response.status < 500) pending = []; // also after 413, which would come again
  if (replaced.length && !pending.length) result.replaceChildren(...replaced);
  if (!pending.length) replaced = [];
  if (!answer) return say(response.headers.get("content-type")?.startsWith("text/plain") ? text : `The server answered ${response.status}.`);
  const { side, resize } = answered.querySelector(".clip-form").dataset; // of the model that is chosen now
  Object.assign(form.dataset, { side, resize });
  const sets = answered.querySelector("#clip-labels");
  if (sets && (response.ok || sets.length > 1)) offer(sets);
  const focused = result.contains(document.activeElement);
  result.replaceChildren(...answer.childNodes);
  putBack(kept);
  unhide(result);
  if (focused) result.focus();
  remember();
  for (const span of result.querySelectorAll("[data-round-trip]")) span.textContent = `, there and back ${ms.toFixed(1)} ms`;
  status.textContent = answered.querySelector("#clip-status").textContent;
}

/** Offers the label sets of a response, if they are another model's than those of the form. */
function offer({ options, value }) {
  const values = (of) => JSON.stringify([...of].map((option) => option.value));
  const { labels } = form.elements;
  if (values(options) === values(labels.options)) return;
  labels.replaceChildren(...options);
  labels.value = value;
  chosenSet = value || labels.options[0].value;
}

/** Makes the address of the page a link to the answer, which has vectors. The pictures stay in this tab, for a reload. */
function remember() {
  const link = result.querySelector(".clip-permalink");
  const vectors = result.querySelectorAll("[name=vector]");
  try {
    if (link) history.replaceState(null, "", link.href);
    result.querySelectorAll("[name=img]").forEach(({ value }, at) => value && sessionStorage.setItem(KEPT + vectors[at].value, value));
  } catch {
    // Safari allows 100 addresses in 30 seconds, and a tab keeps 5 MB
  }
}

/** The pictures that this tab has kept, by vector. */
function keptPictures() {
  const vectors = [...result.querySelectorAll("[name=vector]")].map(({ value }) => value);
  try {
    return new Map(vectors.map((vector) => [vector, sessionStorage.getItem(KEPT + vector)]));
  } catch {
    return new Map(); // the browser keeps nothing
  }
}

/** Adds the pictures that were not sent to the response, which has only their vectors. */
function putBack(kept) {
  const [fields, images] = [result.querySelectorAll("[name=img]"), result.querySelectorAll("img")];
  result.querySelectorAll("[name=vector]").forEach(({ value }, at) => {
    const img = kept.get(value);
    if (!img || fields[at].value) return;
    fields[at].value = img;
    images[at].src = `data:image/jpeg;base64,${img.replaceAll("-", "+").replaceAll("_", "/")}`;
    for (const note of result.querySelectorAll("[data-without]")) if (note.dataset.without === value) note.remove();
    for (const link of result.querySelectorAll("[data-most]")) {
      link.href += img; // the link ends with img=
      link.parentNode.hidden = link.search.length - 1 > link.dataset.most;
      link.parentNode.nextElementSibling.hidden = !link.parentNode.hidden;
    }
  });
}

function say(sentence) {
  result.querySelector(".message-error")?.remove();
  const paragraph = Object.assign(document.createElement("p"), { className: "message-error", textContent: sentence });
  paragraph.setAttribute("role", "alert");
  result.prepend(paragraph);
  status.textContent = "";
}

function busy(is) {
  form.querySelector("progress").hidden = !is;
  result.setAttribute("aria-busy", is);
}

function unhide(part) {
  for (const element of part.querySelectorAll("[data-script]")) element.hidden = "copy" in element.dataset && !navigator.clipboard;
}

/** True if the form has a picture. Without one, typing sends nothing. */
function hasPicture() {
  return pending.length || new FormData(form).has("vector");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.submitter);
});
form.addEventListener("input", ({ target }) => {
  if (target.name === "own") form.elements.labels.value = target.value.trim() ? "" : chosenSet;
  clearTimeout(timer);
  if (target.matches("textarea, [type=number]")) timer = setTimeout(() => hasPicture() && send(), TYPING_MS);
});
form.addEventListener("change", ({ target }) => {
  if (target.type === "file" && target.files.length) take(target.files, target);
  if (target.name === "model" && hasPicture()) send();
  if (target.name === "labels") {
    chosenSet = target.value || chosenSet;
    if (form.elements.shown) form.elements.shown.value = form.elements.own.value; // the user means the set, not the typed labels
    if (hasPicture() && (target.value || form.elements.own.value.trim())) send();
  }
});
result.addEventListener("click", async ({ target }) => {
  if (!target.dataset.copy) return;
  const copied = result.querySelector(target.dataset.copy);
  await navigator.clipboard.writeText(copied.href ?? copied.textContent);
  target.textContent = "Copied";
});
onPictures(form, take);
addEventListener("pageshow", () => {
  if (takes || result.querySelector("[name=vector]")) return; // from the browser's cache, or by a link to an answer
  for (const input of form.querySelectorAll("[type=file]")) if (input.files.length) take(input.files, input);
});
putBack(keptPictures());
unhide(document);
