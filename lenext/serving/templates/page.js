// The limit of a request is that of one picture: several pictures go in a request each.
const send = window.fetch;
window.fetch = async (address, options) => {
  const files = options?.body instanceof FormData ? options.body.getAll("files") : [];
  if (files.length < 2) return send(address, options);
  const kept = [];
  for (const file of files) {
    const body = new FormData();
    body.append("files", file);
    const answer = await send(address, { ...options, body });
    if (!answer.ok) return answer;
    kept.push(...(await answer.json()));
  }
  return Response.json(kept);
};

// Gradio refuses, in English, what the browser does not call a picture. It is sent as one, and answered in our words:
// some that can be read, such as HEIC, have no name in some browsers.
const asPictures = (files) => {
  const kept = new DataTransfer();
  for (const file of files) {
    kept.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, { type: "image/*" }));
  }
  return kept;
};
document.addEventListener("change", ({ target }) => {
  if (target.type === "file") target.files = asPictures(target.files).files;
}, true);
document.addEventListener("drop", (event) => {
  Object.defineProperty(event, "dataTransfer", { value: asPictures(event.dataTransfer.files) });
}, true);

// What the browser cannot show has its reason beside it, and needs no sign of its own.
for (const kind of ["error", "load"]) {
  document.addEventListener(kind, ({ target }) => {
    if (target.matches?.("#picture img")) target.classList.toggle("lx-unseen", kind === "error");
  }, true);
}

// WORDS: what Gradio says in English on every page, to those who hear it, and what the page says instead.
new MutationObserver(() => {
  for (const name of ["aria-label", "title"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      const ours = WORDS[element.getAttribute(name)];
      if (ours) element.setAttribute(name, ours);
    }
  }
}).observe(document, { subtree: true, childList: true, attributeFilter: ["aria-label", "title"] });
