/** Closes the menus of a page at a click elsewhere and at Escape, and moves among their entries by arrow keys. */

const open = () => [...document.querySelectorAll("details.details-menu[open]")];

document.addEventListener("click", ({ target }) => {
  for (const menu of open()) if (!menu.contains(target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  for (const menu of open()) {
    if (event.key === "Escape") {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const entries = [...menu.querySelectorAll("a, button")];
    if (!step || !menu.contains(document.activeElement) || !entries.length) continue;
    event.preventDefault();
    const at = entries.indexOf(document.activeElement);
    entries[at < 0 ? (step > 0 ? 0 : entries.length - 1) : (at + step + entries.length) % entries.length].focus();
  }
});
