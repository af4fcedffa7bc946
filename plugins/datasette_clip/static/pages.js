/** Sends the form of /-/clip/classify or /-/clip/compare as it is changed, and puts the answer into the page. */
import { shrink } from "./clip.js";
import { onPictures } from "./picking.js";

const TYPING_MS = 300; // after the last key, labels and texts are sent
const form = document.querySelector(".clip-form");
const result = document.querySelector("#clip-result");
const status = document.querySelector("#clip-status");
const several = "several" in form.dataset;
let pending = []; // pictures that are chosen and not yet answered: [name, Blob]
let asking = new AbortController();
let timer;
let takes = 0;
let chosen = form.elements.labels?.value || form.elements.labels?.options[0].value; // the label set
let before = []; // what a preview has taken the place of

/** Shrinks pictures as CLIP sees them and sends them; what this browser cannot read goes as it is: the server says why. */
async function take(files, from) {
  for (const input of form.querySelectorAll("input[type=file]")) if (input !== from) input.value = "";
  const mine = ++takes;
  const side = Number(form.dataset.side);
  const taken = [];
  for (const file of [...files].slice(several ? 0 : -1)) taken.push([file.name, await shrink(file, side).catch(() => file)]);
  if (!several && mine !== takes) return; // another has been chosen meanwhile
  pending = several ? [...pending, ...taken] : taken;
  if (!several && taken[0][1].type === "image/jpeg") preview(...taken[0]);
  await send();
  result.scrollIntoView({ block: "nearest" }); // on a telephone it is below the form
}

/** The picture, before the server has seen it. */
function preview(name, blob) {
  const figure = document.createElement("figure");
  const image = Object.assign(new Image(224, 224), { src: URL.createObjectURL(blob), alt: `${name}, as CLIP will look at it` });
  figure.className = "clip-picture";
  figure.append(image);
  if (!before.length) before = [...result.childNodes];
  result.replaceChildren(...result.querySelectorAll("[type=hidden]"), figure);
}

/** Sends the form with the pictures that are pending; those that the server has seen go as their vectors alone. */
async function send(button) {
  clearTimeout(timer);
  asking.abort();
  const mine = (asking = new AbortController());
  const body = new FormData(form);
  if (button?.name) body.append(button.name, button.value);
  body.delete("image");
  const pictures = body.getAll("img").map((img, at) => [body.getAll("vector")[at], img]);
  body.delete("img");
  for (const [vector, img] of pictures) body.append("img", vector ? "" : img);
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
  if (mine === asking) busy(false);
}

/** Puts an answer in place of the one before; or only its sentence, where the answer is not this page. */
function show(response, text, kept, ms) {
  const answered = new DOMParser().parseFromString(text, "text/html");
  const answer = answered.querySelector("#clip-result");
  if (response.status < 500) pending = []; // also where it says 413, which it would say again
  if (before.length && !pending.length) result.replaceChildren(...before);
  if (!pending.length) before = [];
  if (!answer) return say(response.headers.get("content-type")?.startsWith("text/plain") ? text : `The server answered ${response.status}.`);
  const focused = result.contains(document.activeElement);
  result.replaceChildren(...answer.childNodes);
  putBack(kept);
  unhide(result);
  if (focused) result.focus();
  for (const span of result.querySelectorAll("[data-round-trip]")) span.textContent = `, there and back ${ms.toFixed(1)} ms`;
  status.textContent = answered.querySelector("#clip-status").textContent;
}

/** Puts pictures that were not sent, by their vectors, where the answer has left them out. */
function putBack(kept) {
  const [fields, images] = [result.querySelectorAll("[name=img]"), result.querySelectorAll("img")];
  result.querySelectorAll("[name=vector]").forEach(({ value }, at) => {
    const img = kept.get(value);
    if (!img || fields[at].value) return;
    fields[at].value = img;
    images[at].src = `data:image/jpeg;base64,${img.replaceAll("-", "+").replaceAll("_", "/")}`;
    for (const link of result.querySelectorAll("[data-most]")) {
      link.href += img; // which is its last field
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

/** Whether there is a picture to ask about: typing alone asks for nothing. */
function hasPicture() {
  return pending.length || new FormData(form).has("vector");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.submitter);
});
form.addEventListener("input", ({ target }) => {
  if (target.name === "own") form.elements.labels.value = target.value.trim() ? "" : chosen;
  clearTimeout(timer);
  if (target.matches("textarea, [type=number]")) timer = setTimeout(() => hasPicture() && send(), TYPING_MS);
});
form.addEventListener("change", ({ target }) => {
  if (target.type === "file" && target.files.length) take(target.files, target);
  if (target.name === "labels") {
    chosen = target.value || chosen;
    if (form.elements.shown) form.elements.shown.value = form.elements.own.value; // the set is meant, not what was typed
    if (hasPicture() && (target.value || form.elements.own.value.trim())) send();
  }
});
result.addEventListener("click", async ({ target }) => {
  if (!target.dataset.copy) return;
  await navigator.clipboard.writeText(result.querySelector(target.dataset.copy).href);
  target.textContent = "Copied";
});
onPictures(form, take);
addEventListener("pageshow", () => {
  if (takes) return; // the page is as it was left
  for (const input of form.querySelectorAll("[type=file]")) if (input.files.length) take(input.files, input);
});
unhide(document);
