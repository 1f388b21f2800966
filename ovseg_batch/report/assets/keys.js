"use strict";

// The keyboard, the help, and the beginning of the page.
const HELP = [
  ["Everywhere", [
    ["?", "this help"], ["m", "masks on or off"], ["[ ]", "masks fainter or stronger"], ["t", "dark or light"],
    ["r w u", "judge right, wrong or unsure; the same key again takes it back"], ["Shift + S", "save the decisions"]]],
  ["Gallery", [
    ["← → ↑ ↓", "from image to image"], ["Home End", "first, last image"], ["Enter", "open the image"], ["/", "search a name"],
    ["l k o d", "label, kind of image, order, decisions"], ["i", "filter masks by confidence, size and source"],
    ["c", "clear all filters"], ["Shift + L", "load decisions"], ["Shift + F", "save the file names of the filter"]]],
  ["Image", [
    ["← →", "previous, next image; they move the picture when it is enlarged"], ["p n", "previous, next image in any case"],
    ["↑ ↓", "previous, next mask; also , and ."], ["Shift + R W U", "judge the whole image although a mask is chosen"],
    ["x", "take back the decision"], ["h", "hide or show the chosen mask"], ["Shift + H", "hide or show its label"],
    ["a", "show all masks"], ["f", "outlines or filled"], ["v", "original and masks side by side"],
    ["e", "before and after the edit"], ["d", "dense map"], ["q", "prompts"],
    ["+ − 0", "zoom in, out, whole image; also the wheel and a double click"], ["g", "open the original file"],
    ["Escape", "release the mask; then close the image"]]],
];

function showHelp() {
  const parts = HELP.map(([title, keys]) => {
    const section = element("section"), list = element("dl");
    for (const [key, text] of keys) {
      const name = element("dt");
      for (const one of key.split(" ")) name.append(one === "+" && key.length > 5 && key.startsWith("Shift") ? "+" : element("kbd", "", one), " ");
      list.append(name, element("dd", "", text));
    }
    section.append(element("h3", "", title), list);
    return section;
  });
  at("help-keys").replaceChildren(...parts);
  if (!at("help").open) at("help").showModal();
}

function nudge(by) { setOpacity(Math.max(0, Math.min(1, (state.masks ? state.layer : 0) + by))); }

function theme() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
}

const EVERYWHERE = {
  "?": showHelp, m: () => setOpacity(state.masks ? 0 : state.layer), "[": () => nudge(-0.1), "]": () => nudge(0.1), t: theme,
  S: save,
};

function focusOn(id) {
  showFilters(true);
  at(id).focus();
}

const IN_GALLERY = {
  "/": () => focusOn("name"), l: () => focusOn("label"), k: () => focusOn("show"), o: () => focusOn("order"),
  d: () => focusOn("decided"), i: () => { at("mask-filters").open = true; focusOn("least"); }, c: clearFilters,
  r: () => judgeTile("right"), w: () => judgeTile("wrong"), u: () => judgeTile("unsure"),
  L: () => at("file").click(), F: saveNames,
};

function judgeTile(decision) {
  if (!view.length || !document.activeElement.closest(".tile")) return;
  decide(entries[view[current]], null, decision);
  redrawTile(current);
}

const zoomed = () => zoom.scale > 1;
const IN_VIEWER = {
  ArrowLeft: () => (zoomed() ? panBy(60, 0) : step(-1)), ArrowRight: () => (zoomed() ? panBy(-60, 0) : step(1)),
  ArrowUp: () => (zoomed() ? panBy(0, 60) : stepMask(-1)), ArrowDown: () => (zoomed() ? panBy(0, -60) : stepMask(1)),
  p: () => step(-1), n: () => step(1), ",": () => stepMask(-1), ".": () => stepMask(1),
  r: () => judgeShown("right"), w: () => judgeShown("wrong"), u: () => judgeShown("unsure"),
  R: () => judge("right", true), W: () => judge("wrong", true), U: () => judge("unsure", true), x: undo,
  h: () => selected !== null && toggleMask(selected),
  H: () => selected !== null && toggleLabel(maskOf(shown.entry, selected)[LABEL]), a: showAll,
  f: () => at("tool-outlines").click(), v: () => at("tool-side").click(), e: () => at("tool-edited").click(),
  d: () => at("tool-dense").click(), q: () => at("tool-prompts").click(),
  "+": () => zoomBy(STEP), "=": () => zoomBy(STEP), "-": () => zoomBy(1 / STEP), 0: resetZoom,
  g: () => at("original")?.click(),
};

function judgeShown(decision) {
  judge(decision, selected === null);
  showWhy();
}

function undo() {
  if (!shown) return;
  const { entry } = shown;
  if (selected !== null) judge(null, false);
  else if (decisionOf(entry)?.decision) judge(decisionOf(entry).decision, true);
  showWhy();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  const typing = event.target.matches("input:not([type=checkbox], [type=range]), select, textarea");
  if (typing || (event.target.matches("input[type=range]") && event.key.startsWith("Arrow"))) return;
  const viewing = at("viewer").open;
  const act = (viewing ? IN_VIEWER : IN_GALLERY)[event.key] ?? EVERYWHERE[event.key];
  if (act) {
    event.preventDefault();
    act();
    return;
  }
  if (viewing || !event.target.closest("#grid")) return;
  const { columns } = shape();
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -view.length, End: view.length }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  go(current + by);
}

function listen() {
  listenToControls();
  listenToDecisions();
  listenToViewer();
  listenToZoom();
  at("theme").addEventListener("click", theme);
  for (const made of document.querySelectorAll(".help")) made.addEventListener("click", showHelp);
  at("help-close").addEventListener("click", () => at("help").close());
  at("viewer").addEventListener("cancel", (event) => { // Escape releases the mask first
    if (selected !== null) { event.preventDefault(); choose(null); }
  });
  document.addEventListener("keydown", pressed);
  for (const link of document.querySelectorAll("a[href^='#']")) { // the address holds the state
    link.addEventListener("click", (event) => {
      const target = document.querySelector(link.getAttribute("href"));
      event.preventDefault();
      target.scrollIntoView();
      target.setAttribute("tabindex", "-1");
      target.focus({ preventScroll: true });
    });
  }
  let drawing = false;
  const redraw = () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { drawing = false; draw(); });
  };
  addEventListener("scroll", redraw, { passive: true });
  new ResizeObserver(redraw).observe(document.body);
  addEventListener("hashchange", restore);
}

function restore() {
  const before = shown?.entry[ROW];
  readAddress();
  const image = state.image, mask = state.mask === "" ? null : Number(state.mask);
  showControls();
  select();
  if (image === "") return at("viewer").open && at("viewer").close();
  const place = view.findIndex((one) => String(entries[one][ROW]) === image);
  if (place >= 0 && before !== entries[view[place]][ROW]) open(place, mask);
}

async function begin() {
  for (const name of run.labels) at("label").append(new Option(name, name));
  for (const code of run.codes) at("show").append(new Option(`failed: ${code.replaceAll("_", " ")}`, `failed ${code}`));
  for (const name of run.sources) at("source").append(new Option(name === "sam" ? "SAM" : "dense map", name));
  readAddress();
  const { image, mask } = state;
  listen();
  showControls();
  for (let chunk = 0; chunk < run.chunks; chunk++) {
    await load(`data/index-${String(chunk).padStart(5, "0")}.js`);
    if (chunk === 0 || chunk === run.chunks - 1 || chunk % 8 === 0) {
      select();
      if (chunk === 0) performance.mark("first view");
      await new Promise((done) => setTimeout(done));
    }
  }
  if (run.decisions) await load("data/decisions.js");
  recall();
  select();
  const place = image === "" ? -1 : view.findIndex((one) => String(entries[one][ROW]) === image);
  if (place >= 0) await open(place, mask === "" ? null : Number(mask));
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => { at("count").textContent = `${error.message}. Write the report again.`; });
