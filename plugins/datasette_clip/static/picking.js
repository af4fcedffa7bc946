/** Calls `take(files)` for files that are dropped or pasted anywhere on a page. A file dragged over it marks the form. */
export function onPictures(form, take) {
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // text goes into a field
    event.preventDefault();
    form.classList.add("clip-over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? form.classList.remove("clip-over"));
  document.addEventListener("drop", (event) => {
    form.classList.remove("clip-over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return; // text goes into a field
    event.preventDefault();
    take(event.clipboardData.files);
  });
}
