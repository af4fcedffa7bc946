/** Shows a picture large: with keys on the page of its own, and over the search page in a dialog. */
const SWIPE_PX = 60; // a finger's way sideways that leads to the next picture

/** Calls `step(link)` for the arrow keys and for swipes over an element that has a picture of the viewer in it. */
export function onSteps(element, step) {
  const follow = (key) => {
    const link = element.querySelector(`[data-step="${key}"]`);
    if (link) step(link);
    return link;
  };
  let from = null;
  document.addEventListener("keydown", (event) => {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (isPlain && element.querySelector("#clip-view") && !event.target.closest("input, textarea, select") && follow(event.key)) event.preventDefault();
  });
  element.addEventListener("touchstart", ({ touches }) => (from = touches.length === 1 ? touches[0] : null), { passive: true });
  element.addEventListener("touchend", ({ changedTouches: [to] }) => {
    const across = from ? to.clientX - from.clientX : 0;
    const isSwipe = Math.abs(across) > SWIPE_PX && Math.abs(across) > 2 * Math.abs(to.clientY - from.clientY);
    if (isSwipe && visualViewport.scale === 1) follow(across < 0 ? "ArrowRight" : "ArrowLeft");
    from = null;
  });
}

/** Copies the address of a picture, and says so. Where that is not allowed the link is followed as any other. */
export function copyLink(event) {
  const link = event.target.closest("[data-share]");
  if (!link || !navigator.clipboard || event.ctrlKey || event.metaKey) return false;
  event.preventDefault();
  const say = (text) => (link.parentElement.querySelector("[data-shared]").textContent = text);
  navigator.clipboard.writeText(link.href).then(() => say("The link is copied."), () => say(link.href));
  return true;
}

/** Loads the pictures before and after, so that the next step shows its picture at once. */
export function loadNeighbours(view) {
  for (const link of view.querySelectorAll("[data-large]")) if (link.dataset.large) new Image().src = link.dataset.large;
}

/** The dialog that shows pictures over another page. */
export class Viewer {
  constructor(dialog) {
    this.dialog = dialog;
    this.newest = new AbortController(); // of the newest picture; older ones are not shown
    this.title = null; // of the page beneath
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Shows the picture of a page of the viewer. False if there is no such page: then the browser is to go there. */
  async show(url) {
    this.newest.abort();
    const mine = (this.newest = new AbortController());
    if (!this.isOpen) this.dialog.showModal();
    this.dialog.setAttribute("aria-busy", true);
    try {
      const response = await fetch(url, { signal: mine.signal });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const view = page.querySelector("#clip-view");
      if (mine !== this.newest) return true;
      if (!view) return false;
      this.dialog.replaceChildren(view);
      this.dialog.setAttribute("aria-busy", false);
      this.title ??= document.title;
      document.title = view.dataset.title;
      view.querySelector("[data-back]").textContent = "Close";
      this.dialog.scrollTo(0, 0);
      const focused = this.focused && view.querySelector(this.focused); // the last picture has no next one
      (focused ?? view.querySelector("[data-back]")).focus({ preventScroll: true });
      loadNeighbours(view);
      return true;
    } catch (error) {
      return error.name === "AbortError";
    }
  }

  /** Goes to the picture of a link in the dialog, which keeps the focus on the link that leads on. */
  step(link) {
    this.focused = `[data-step="${link.dataset.step}"]`;
    return this.show(link.href);
  }

  /** The id of the row on the search page whose picture was shown last. */
  get row() {
    return this.dialog.querySelector("#clip-view")?.dataset.row;
  }

  close() {
    this.newest.abort();
    this.focused = null;
    document.title = this.title ?? document.title;
    this.title = null;
    this.dialog.close();
    this.dialog.replaceChildren();
  }
}

const own = document.querySelector("main #clip-view");
if (own) {
  const page = document.querySelector(".clip-page");
  onSteps(page, (link) => location.replace(link.href)); // so that Back leads to the results
  page.addEventListener("click", copyLink);
  addEventListener("popstate", () => location.reload()); // an entry that the search page has made
  loadNeighbours(own);
  addEventListener("keydown", ({ key, target }) => {
    if (key === "Escape" && !target.closest("input, textarea, select, details[open]")) location.assign(own.querySelector("[data-back]").href);
  });
}
