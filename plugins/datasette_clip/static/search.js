/** Searches a collection while the user types: fetches the same page, shows its rows, and keeps the URL a link to them. */
import { shrink } from "./clip.js";
import { onPictures } from "./picking.js";
import { copyLink, onSteps, Viewer } from "./viewer.js";

const TYPING_MS = 80; // from the last key until the words are sent
const POLL_MS = 2000; // between two looks at how far a collection is that is being filled
const FIRST_ROWS = 24; // of a page
const MOST_ROWS = 1000; // that the server answers at once
const SETTLED_MS = 2000; // a query that stood so long gets an entry in the history
const form = document.querySelector("#clip-form");
const box = document.querySelector("#clip-q");
const picture = document.querySelector("#clip-asked"); // the picture of the query
const narrow = document.querySelector("#clip-narrow"); // the filters
const viewer = new Viewer(document.querySelector("#clip-dialog"));
const result = document.querySelector("#clip-result");
const status = document.querySelector("#clip-status");
let newest = new AbortController(); // of the newest request; responses to older ones are not shown
let timer;
let typedAt = -Infinity; // when typed words were last sent
let shownUrl = location.href; // of the rows that are shown
let loading = null; // the URL of further rows that are on their way
let opener = null; // the link that opened the viewer

/** Aborts the newest request. The caller's request is now the newest. */
function begin() {
  loading = null;
  clearTimeout(timer);
  newest.abort();
  return (newest = new AbortController());
}

/** The URL of the form's query, which has a picture as its vector. */
function urlOf() {
  const search = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (typeof value === "string" && value.trim()) search.append(name, value);
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
  const page = await ask(mine, urlOf());
  if (page) show(page);
}

/** Goes to a page, with its form. `remembered`: its URL is in the history already. `scroll`: where the window was. */
async function go(url, { remembered = false, replace = false, scroll = null, mine = begin(), ...options } = {}) {
  const page = await ask(mine, url, options);
  if (!page) return;
  for (const input of form.querySelectorAll("#clip-q, #clip-where, #clip-model")) input.value = page.getElementById(input.id)?.value ?? "";
  const kept = remembered ? history.state?.picture : null;
  picture.replaceChildren(...page.querySelector("#clip-asked").childNodes);
  showPicture(kept);
  if (!remembered) remember(options.method ? urlOf() : url, { replace });
  show(page);
  scrollTo(0, scroll ?? Math.min(scrollY, result.offsetTop));
}

/** Shows the rows of a page in place of the previous ones. An error comes above them. */
function show(page) {
  const answer = page.querySelector("#clip-result");
  const wrong = answer.querySelector("[role=alert]");
  const filters = page.querySelector("#clip-narrow");
  if (!wrong || filters.children.length) showFilters(filters);
  if (wrong) return say(wrong.textContent, answer.querySelector(".clip-spaced"));
  const open = result.querySelector("#clip-elsewhere")?.open;
  const focused = result.contains(document.activeElement);
  keepImages(answer);
  result.replaceChildren(...answer.childNodes);
  shownUrl = location.href;
  watchEnd();
  result.classList.remove("clip-stale");
  if (open) result.querySelector("#clip-elsewhere")?.setAttribute("open", "");
  if (focused) result.focus();
  announce(page);
}

/** Shows the filters of a page. The focus and what was opened stay. */
function showFilters(next) {
  const focused = narrow.contains(document.activeElement) && document.activeElement;
  const group = focused && focused.closest("[role=group]")?.getAttribute("aria-label");
  const text = focused?.firstChild?.textContent;
  const opened = new Set([...narrow.querySelectorAll("details[open]")].map((one) => one.parentElement.getAttribute("aria-label")));
  narrow.replaceChildren(...next.childNodes);
  for (const one of narrow.querySelectorAll("details")) one.open = opened.has(one.parentElement.getAttribute("aria-label"));
  if (!focused) return;
  const same = [...narrow.querySelectorAll("a, input, summary")].find((one) => {
    if (focused.id) return one.id === focused.id;
    return one.closest("[role=group]")?.getAttribute("aria-label") === group && one.firstChild?.textContent === text;
  });
  (same ?? result).focus({ preventScroll: true });
}

/** Puts the images that are shown already into a new page's rows, so that no picture is asked for twice. */
function keepImages(answer) {
  const images = new Map([...result.querySelectorAll("#clip-grid img")].map((image) => [image.getAttribute("src"), image]));
  for (const image of answer.querySelectorAll("#clip-grid img")) {
    const known = images.get(image.getAttribute("src"));
    if (known) image.replaceWith(known);
  }
}

/** Appends the rows that follow. `focus`: to the first of them. */
async function more(link, { focus = true } = {}) {
  if (link.href === loading) return;
  const mine = begin();
  loading = link.href;
  const page = await ask(mine, link.href);
  if (mine === newest) loading = null;
  const grid = page?.querySelector("#clip-grid");
  if (!grid) return page && say(page.querySelector("#clip-result").textContent.trim());
  if (result.querySelector(".clip-weak")) grid.querySelector(".clip-weak")?.remove();
  const first = grid.querySelector("a");
  result.querySelector("#clip-grid").append(...grid.children);
  const next = page.querySelector("#clip-more");
  if (next) result.querySelector("#clip-more").replaceWith(next);
  else result.querySelector("#clip-more").remove();
  if (focus) first.focus({ preventScroll: true });
  const rows = result.querySelectorAll("#clip-grid > li[id]").length;
  const isFirst = next && !new URL(location.href).searchParams.has("offset");
  const order = result.querySelector(".clip-score") ? ", best first" : "";
  status.textContent = (isFirst ? `The first ${rows} rows` : `${rows} rows`) + order;
  rememberRows(rows);
  watchEnd();
}

/** Has the URL lead to as many rows as are shown, up to what the server answers at once. */
function rememberRows(rows) {
  const url = new URL(location.href);
  if (url.searchParams.has("offset")) return;
  url.searchParams.set("k", Math.min(rows, MOST_ROWS));
  remember(url.href, { replace: true });
  shownUrl = location.href;
}

const end = new IntersectionObserver((entries) => {
  const link = entries.some((entry) => entry.isIntersecting) && result.querySelector("[data-more]");
  if (link && !viewer.isOpen && result.getAttribute("aria-busy") !== "true") more(link, { focus: false });
}, { rootMargin: "600px" });

/** Loads further rows when the end of those that are shown comes near. */
function watchEnd() {
  end.disconnect();
  const link = result.querySelector("#clip-more");
  if (link) end.observe(link);
}

function announce(page) {
  const said = page.querySelector("#clip-status").textContent;
  if (status.textContent !== said) status.textContent = said; // else screen readers say it at every key
  document.title = page.title;
}

/** Puts a URL into the history. It replaces the last entry while the user types, or if `replace`. */
function remember(url, { typed = false, replace = false } = {}) {
  const continued = replace || (typed && performance.now() - typedAt < SETTLED_MS);
  typedAt = typed ? performance.now() : -Infinity;
  const state = { picture: picture.querySelector("img")?.src };
  try {
    if (continued || url === location.href) return history.replaceState({ ...history.state, ...state }, "", url);
    rememberScroll();
    history.pushState(state, "", url);
  } catch {
    // Safari allows 100 in 30 seconds
  }
}

/** Keeps where the window is with the current entry of the history. */
function rememberScroll() {
  if (!viewer.isOpen) history.replaceState({ ...history.state, scroll: scrollY }, "");
}

/** Shows the picture of the query again, of which a page that was fetched by its URL has the vector alone. */
function showPicture(src) {
  const figure = picture.querySelector("figure");
  if (!src || !figure || figure.querySelector("img")) return;
  figure.prepend(Object.assign(new Image(96, 96), { src, alt: "The picture, as CLIP looks at it" }));
}

/** Shrinks a picture to what CLIP sees and searches by it. A file that this browser cannot read is sent as it is. */
async function take(files, from) {
  const mine = begin();
  const file = files[files.length - 1];
  for (const input of form.querySelectorAll("input[type=file]")) if (input !== from) input.value = "";
  const small = await shrink(file, Number(form.dataset.side), form.dataset.resize).catch(() => null);
  if (mine !== newest) return;
  for (const input of form.querySelectorAll("input[type=file]")) input.value = "";
  const body = new FormData();
  for (const [name, value] of new URL(urlOf()).searchParams) body.append(name, value);
  body.append("image", small ?? file, file.name);
  await go(form.action, { mine, method: "POST", body });
}

/** Shows the picture of a link to the viewer over the rows. */
async function view(link) {
  opener = link;
  rememberScroll();
  history.pushState({}, "", link.href);
  if (!(await viewer.show(link.href))) location.reload();
}

/** Closes the viewer. The focus is on the row whose picture was shown last, and the window where it was. */
function closeViewer() {
  const row = document.getElementById(viewer.row)?.querySelector("a") ?? opener;
  viewer.close();
  row?.focus({ preventScroll: row === opener });
}

/** Shows an error above the rows, and a hint that may help. */
function say(sentence, hint = null) {
  for (const old of result.querySelectorAll("[role=alert], .clip-spaced")) old.remove();
  if (hint) result.prepend(hint);
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
  if (["clip-where", "clip-from", "clip-to", "clip-model"].includes(target.id)) search();
});
document.querySelector(".clip-page").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || copyLink(event)) return;
  const act = {
    view: () => view(link),
    back: () => history.back(),
    step: () => step(link),
    go: () => leave(link.href),
    q: () => ((box.value = link.dataset.q), search()),
    remove: () => (picture.replaceChildren(), search()),
    more: () => more(link),
  };
  const name = Object.keys(act).find((name) => name in link.dataset);
  if (!name) return;
  event.preventDefault();
  act[name]();
});

/** Goes to another search. From the viewer, it takes the place of the picture in the history. */
function leave(url) {
  const replace = viewer.isOpen;
  if (replace) viewer.close();
  go(url, { replace, scroll: 0 });
}

/** Goes to the picture before or after the one that is shown, which it replaces in the history. */
async function step(link) {
  history.replaceState({}, "", link.href);
  if (!(await viewer.step(link))) location.reload();
}

viewer.dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  history.back();
});
onSteps(viewer.dialog, step);
document.addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey, altKey, shiftKey } = event;
  const place = { Home: 0, End: -1 }[key];
  if (place === undefined || !viewer.isOpen || ctrlKey || metaKey || altKey || shiftKey) return;
  const link = [...result.querySelectorAll("#clip-grid [data-view]")].at(place); // of those that are loaded
  if (!link) return;
  event.preventDefault();
  step(link);
});
addEventListener("popstate", async ({ state }) => {
  const isPicture = new URL(location.href).pathname !== new URL(form.action).pathname;
  if (isPicture) return (await viewer.show(location.href)) || location.reload();
  if (viewer.isOpen) closeViewer();
  if (location.href !== shownUrl) go(location.href, { remembered: true, scroll: state?.scroll });
});
/** Says how far a collection is that is being filled, until it is full; then searches once more. */
async function poll() {
  const line = document.querySelector("#clip-filling");
  if (!line) return;
  await new Promise((done) => setTimeout(done, POLL_MS));
  try {
    const answer = document.hidden ? null : await (await fetch(`${form.action}.json?k=1`)).json();
    const { done, total, searchable } = answer?.filling ?? {};
    if (answer?.ok && !answer.filling) {
      line.textContent = "All pictures are read.";
      line.id = "";
      if (!viewer.isOpen && result.querySelectorAll("#clip-grid > li[id]").length <= FIRST_ROWS) search({ typed: true });
    } else if (total) {
      Object.assign(line.querySelector("progress"), { max: total, value: done });
      const [a, b, c] = [done, total, searchable].map((number) => number.toLocaleString("en"));
      line.querySelector("span").textContent = `${a} of ${b} pictures are read. ${c} can be searched already.`;
      if (!viewer.isOpen && !box.value && result.querySelectorAll("#clip-grid > li[id]").length < FIRST_ROWS) search({ typed: true });
    }
  } catch {
    // the server may be starting again
  }
  poll();
}

poll();
addEventListener("pagehide", rememberScroll);
onPictures(form, take);
showPicture(history.state?.picture);
watchEnd();
for (const element of document.querySelectorAll("[data-script], [data-plain]")) element.hidden = "plain" in element.dataset;
