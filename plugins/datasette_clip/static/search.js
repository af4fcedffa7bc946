/** Searches a collection while the user types: fetches the same page, shows its rows, and keeps the URL a link to them. */
import { base64url, shrink } from "./clip.js";
import { onPictures } from "./picking.js";

const TYPING_MS = 80; // from the last key until the words are sent
const SETTLED_MS = 2000; // a query that stood so long gets an entry in the history
const form = document.querySelector("#clip-form");
const box = document.querySelector("#clip-q");
const picture = document.querySelector("#clip-asked"); // the picture of the query
const result = document.querySelector("#clip-result");
const status = document.querySelector("#clip-status");
let newest = new AbortController(); // of the newest request; responses to older ones are not shown
let timer;
let typedAt = -Infinity; // when typed words were last sent

/** Aborts the newest request. The caller's request is now the newest. */
function begin() {
  clearTimeout(timer);
  newest.abort();
  return (newest = new AbortController());
}

/** The URL of the form's query. If `short`, a picture goes as its vector, which is shorter and already embedded. */
function urlOf({ short = false } = {}) {
  const fields = new FormData(form);
  const vector = short && picture.querySelector("[data-vector]")?.dataset.vector;
  if (vector) fields.set("img", `vector:${vector}`);
  const search = new URLSearchParams();
  for (const [name, value] of fields) {
    if (typeof value === "string" && value.trim()) search.append(vector && name === "img" ? "q" : name, value);
  }
  return form.action + (search.size ? `?${search}` : "");
}

/** The page of a URL, parsed; null if it is no longer the newest request, or if there is no page. */
async function ask(mine, url, options = {}) {
  busy(true);
  const begun = performance.now();
  let answered = null;
  try {
    const response = await fetch(url, { signal: mine.signal, ...options });
    const text = await response.text();
    if (mine !== newest) return null;
    const page = new DOMParser().parseFromString(text, "text/html");
    if (page.querySelector("#clip-result")) answered = page;
    else say(response.headers.get("content-type")?.startsWith("text/plain") ? text : `The server answered ${response.status}.`);
  } catch (error) {
    if (mine === newest) say(`The server cannot be reached (${error.message}). Nothing is lost: search again.`);
  }
  if (mine === newest) busy(false);
  const took = (performance.now() - begun).toFixed(1);
  for (const span of answered?.querySelectorAll("[data-round-trip]") ?? []) span.textContent = `, there and back ${took} ms`;
  return answered;
}

/** Searches by the form. `typed`: the user is still typing. */
async function search({ typed = false } = {}) {
  const mine = begin();
  remember(urlOf(), { typed });
  const page = await ask(mine, urlOf({ short: true }));
  if (page) show(page);
}

/** Goes to a page, with its form. `remembered`: its URL is in the history already. */
async function go(url, { remembered = false, mine = begin(), ...options } = {}) {
  const page = await ask(mine, url, options);
  if (!page) return;
  for (const input of form.querySelectorAll("#clip-q, #clip-where")) input.value = page.getElementById(input.id)?.value ?? "";
  picture.replaceChildren(...page.querySelector("#clip-asked").childNodes);
  show(page);
  if (!remembered) remember(urlOf());
}

/** Shows the rows of a page in place of the previous ones. An error comes above them. */
function show(page) {
  const answer = page.querySelector("#clip-result");
  const wrong = answer.querySelector("[role=alert]");
  if (wrong) return say(wrong.textContent);
  const open = result.querySelector("#clip-elsewhere")?.open;
  const focused = result.contains(document.activeElement);
  result.replaceChildren(...answer.childNodes);
  result.classList.remove("clip-stale");
  if (open) result.querySelector("#clip-elsewhere")?.setAttribute("open", "");
  if (focused) result.focus();
  announce(page);
}

/** Appends the rows that follow. */
async function more(link) {
  const page = await ask(begin(), link.href);
  const grid = page?.querySelector("#clip-grid");
  if (!grid) return page && say(page.querySelector("#clip-result").textContent.trim());
  const first = grid.querySelector("a");
  result.querySelector("#clip-grid").append(...grid.children);
  const next = page.querySelector("#clip-more");
  if (next) result.querySelector("#clip-more").replaceWith(next);
  else result.querySelector("#clip-more").remove();
  first.focus({ preventScroll: true });
  status.textContent = `${result.querySelectorAll("#clip-grid > li").length} rows`;
}

function announce(page) {
  const said = page.querySelector("#clip-status").textContent;
  if (status.textContent !== said) status.textContent = said; // else screen readers say it at every key
  document.title = page.title;
}

/** Puts a URL into the history. It replaces the last entry while the user types. */
function remember(url, { typed = false } = {}) {
  const continued = typed && performance.now() - typedAt < SETTLED_MS;
  typedAt = typed ? performance.now() : -Infinity;
  if (url === location.href) return;
  try {
    if (continued) history.replaceState(null, "", url);
    else history.pushState(null, "", url);
  } catch {
    // Safari allows 100 in 30 seconds
  }
}

/** Shrinks a picture to what CLIP sees and searches by it. A file that this browser cannot read is sent as it is. */
async function take(files, from) {
  const mine = begin();
  const file = files[files.length - 1];
  for (const input of form.querySelectorAll("input[type=file]")) if (input !== from) input.value = "";
  const small = await shrink(file, Number(form.dataset.side)).catch(() => null);
  if (mine !== newest) return;
  for (const input of form.querySelectorAll("input[type=file]")) input.value = "";
  const url = new URL(urlOf());
  url.searchParams.delete("img");
  if (small) {
    url.searchParams.append("img", await base64url(small));
    return go(url, { mine });
  }
  const body = new FormData();
  for (const [name, value] of url.searchParams) body.append(name, value);
  body.append("image", file, file.name);
  await go(form.action, { mine, method: "POST", body });
}

function say(sentence) {
  result.querySelector("[role=alert]")?.remove();
  const paragraph = Object.assign(document.createElement("p"), { className: "message-error", textContent: sentence });
  paragraph.setAttribute("role", "alert");
  result.prepend(paragraph);
  result.classList.add("clip-stale"); // the rows below are those of the previous query
  status.textContent = "";
}

function busy(is) {
  form.querySelector("progress").hidden = !is;
  result.setAttribute("aria-busy", is);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search({ typed: true });
});
box.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(search, TYPING_MS, { typed: true });
});
form.addEventListener("change", ({ target }) => {
  if (target.type === "file" && target.files.length) take(target.files, target);
  if (target.id === "clip-where") search();
});
document.querySelector(".clip-page").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const act = {
    go: () => go(link.href),
    q: () => ((box.value = link.dataset.q), search()),
    remove: () => (picture.replaceChildren(), search()),
    more: () => more(link),
  };
  const name = Object.keys(act).find((name) => name in link.dataset);
  if (!name) return;
  event.preventDefault();
  act[name]();
});
addEventListener("popstate", () => go(location.href, { remembered: true }));
onPictures(form, take);
for (const element of document.querySelectorAll("[data-script], [data-plain]")) element.hidden = "plain" in element.dataset;
