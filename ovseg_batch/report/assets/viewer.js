"use strict";

// One image: the picture with its masks as SVG paths, the list of masks, and what is known about one of them.
// Masks come as paths because a page opened from the disk must not read the pixels of images.
const SVG = "http://www.w3.org/2000/svg";
let shown = null; // { place, entry, details } of the image in the viewer
let selected = null; // number of a mask
const hiddenMasks = new Set(); // numbers, of this image
const hiddenLabels = new Set(); // numbers, of all images

async function open(place, mask = null) {
  const isFirst = !at("viewer").open, entry = entries[view[place]];
  current = place;
  selected = null;
  shown = null;
  hiddenMasks.clear();
  at("viewer-name").textContent = entry[NAME];
  at("position").textContent = `${(place + 1).toLocaleString("en")} of ${view.length.toLocaleString("en")}`;
  at("previous").disabled = place === 0;
  at("next").disabled = place === view.length - 1;
  at("stage").replaceChildren();
  at("side").replaceChildren(element("p", "quiet", "Loading …"));
  if (isFirst) at("viewer").showModal();
  resetZoom();
  let details;
  try {
    details = await detailsOf(view[place]);
  } catch (error) {
    at("side").replaceChildren(element("p", "bad", `${error.message}. Write the report again.`));
    return;
  }
  if (place !== current || !at("viewer").open) return;
  shown = { place, entry, details };
  state.image = String(entry[ROW]);
  showStage();
  showSide();
  choose(mask !== null && mask < maskCount(entry) ? mask : null);
  for (const next of [place + 1, place - 1]) if (next >= 0 && next < view.length) detailsOf(view[next]).catch(() => {});
}

function step(by) {
  const place = current + by;
  if (place >= 0 && place < view.length) open(place);
}

function closed() {
  state.image = "";
  state.mask = "";
  shown = null;
  hideTip();
  writeAddress();
  redrawTile(current);
  go(current);
}

// --- the picture ---

const modeOf = () => (state.view === "side" ? "side" : shown.details.edited && state.view !== "masks" ? "edited" : "masks");

function showStage() {
  const { entry, details } = shown, mode = modeOf(), panes = [];
  if (mode === "side") panes.push(pane("Original", false), pane("Masks", true));
  else panes.push(pane("", mode === "masks"));
  if (mode === "edited") {
    const after = element("div", "after");
    after.append(image(entry, "edited", details.edited[0], details.edited[1], entry[EDITED], `${entry[NAME]}, edited`));
    panes[0].querySelector(".sheet").append(after);
  }
  if (details.failed) panes[0].append(failure(entry, details));
  at("compare").hidden = mode !== "edited";
  at("stage").replaceChildren(...panes);
  if (mode === "edited") compare();
  placeSheets();
  showTools();
}

function pane(name, withMasks) {
  const { entry, details } = shown, box = element("div", "pane"), sheet = element("div", "sheet");
  if (name) box.append(element("span", "pane-name", name));
  if (entry[IMAGE] || details.original) {
    sheet.append(image(entry, "image", details.original ? details.path : "", details.large, entry[IMAGE], entry[NAME]));
  } else if (!details.failed) {
    box.append(element("p", "missing", "The report has no picture of this image: it is remote, or its file has moved."));
  }
  if (withMasks && details.masks) {
    if (state.dense && details.dense) sheet.append(denseLayer(details.dense));
    sheet.append(drawing());
  }
  box.append(sheet);
  return box;
}

// The original file, or else the rendition, or else the thumbnail; the thumbnail is there at once.
function image(entry, kind, path, large, digest, text) {
  const made = element("img"), row = entry[ROW];
  const thumbnail = digest && picture(kind === "edited" ? "edited" : "images", row, digest);
  const rendition = large && picture(kind === "edited" ? "large-edited" : "large", row, digest);
  const original = path && `${path}?${digest}`, sources = [original, rendition, thumbnail].filter(Boolean);
  made.alt = text;
  made.draggable = false;
  if (thumbnail) made.style.backgroundImage = `url("${thumbnail}")`;
  const next = (reason) => {
    sources.shift();
    if (sources.length) made.src = sources[0];
    if (kind === "image") missing(reason, sources.length);
  };
  made.addEventListener("error", () => next("The file is not where it was."));
  made.addEventListener("load", () => {
    const size = shown?.details.size, natural = [made.naturalWidth, made.naturalHeight];
    if (original && sources[0] === original && size && String(size) !== String(natural)) {
      next("The file has changed since the run.");
      return;
    }
    if (!size && made.naturalWidth) {
      shown.natural = natural;
      placeSheets();
    }
    made.style.backgroundImage = "none";
  });
  if (sources.length) made.src = sources[0];
  return made;
}

function missing(reason, others) {
  const note = document.querySelector("#side .file-note");
  if (note) note.textContent = others ? `${reason} This is a smaller copy.` : reason;
}

function drawing() {
  const { entry, details } = shown, svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${details.space[0]} ${details.space[1]}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.classList.add("drawing");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", summary(entry));
  // Small masks come last, so that they can be pointed at and their outlines are not covered.
  const bySize = [...details.masks.keys()].sort((a, b) => details.masks[b].area - details.masks[a].area);
  for (const k of bySize) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", details.masks[k].d);
    path.setAttribute("fill-rule", "evenodd");
    path.classList.add("mask");
    path.dataset.mask = k;
    path.style.setProperty("--own", run.colours[maskOf(entry, k)[LABEL]]);
    svg.append(path);
  }
  svg.append(ring("lit-ring dark"), ring("lit-ring"), ring("ring dark"), ring("ring"));
  if (state.prompts && details.prompts) svg.append(...details.prompts.flatMap(dots));
  return svg;
}

// The outline of the chosen mask, and of the one that is pointed at: white on black, so that it is seen on any picture.
function ring(className) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("class", className);
  return path;
}

function surround(className, k) {
  const d = k === null || !shown?.details.masks ? "" : shown.details.masks[k].d;
  for (const path of document.querySelectorAll(`path.${className}`)) path.setAttribute("d", d);
}

function failure(entry, details) {
  const box = element("div", "failure"), code = run.codes[entry[CODE]];
  box.append(element("h3", "", `Failed: ${code.replaceAll("_", " ")}`),
    element("p", "", `In the stage ${details.failed[0]}: ${details.failed[1]}`),
    element("p", "", run.advice[code] ?? ""));
  return box;
}

function compare() {
  const after = document.querySelector(".after");
  if (after) after.style.clipPath = `inset(0 0 0 ${at("slider").value}%)`;
}

// --- which masks are visible ---

function isVisible(k, wanted = maskFilter()) {
  const { entry } = shown;
  return !hiddenMasks.has(k) && !hiddenLabels.has(maskOf(entry, k)[LABEL]) && wanted(entry[MASKS], k * FIELDS);
}

function showMasks() {
  if (!shown?.details.masks) return;
  const wanted = maskFilter();
  at("stage").classList.toggle("outlines", state.outlines);
  for (const path of document.querySelectorAll(".mask")) {
    const k = Number(path.dataset.mask);
    path.classList.toggle("off", !state.masks || !isVisible(k, wanted));
    path.classList.toggle("selected", k === selected);
  }
  surround("ring", selected);
  for (const row of document.querySelectorAll("#masks .row")) {
    const k = Number(row.dataset.mask), kind = maskDecision(shown.entry, k);
    row.classList.toggle("off", !isVisible(k, wanted));
    row.classList.toggle("selected", k === selected);
    row.querySelector("input").checked = !hiddenMasks.has(k) && !hiddenLabels.has(maskOf(shown.entry, k)[LABEL]);
    row.querySelector(".pick").setAttribute("aria-pressed", k === selected);
    const mark = row.querySelector(".mark");
    mark.className = `mark ${kind ?? ""}`;
    mark.textContent = kind ? SIGNS[kind] : "";
    mark.title = kind ?? "";
  }
  for (const chip of document.querySelectorAll("#labels .chip")) {
    chip.setAttribute("aria-pressed", !hiddenLabels.has(Number(chip.dataset.label)));
  }
}

function choose(k) {
  selected = k;
  state.mask = k === null ? "" : String(k);
  showMasks();
  showWhy();
  document.querySelector("#masks .row.selected")?.scrollIntoView({ block: "nearest" });
  writeAddress();
}

function light(k) {
  for (const one of document.querySelectorAll(".lit")) one.classList.remove("lit");
  surround("lit-ring", k);
  if (k === null) return;
  for (const one of document.querySelectorAll(`.mask[data-mask="${k}"], .row[data-mask="${k}"]`)) one.classList.add("lit");
}

// The masks in the order of the list: the least certain first.
function listed() {
  const { entry } = shown;
  return [...Array(maskCount(entry)).keys()].sort((a, b) => maskOf(entry, a)[SURE] - maskOf(entry, b)[SURE] || a - b);
}

function stepMask(by) {
  const wanted = maskFilter(), rows = listed().filter((k) => isVisible(k, wanted));
  if (!rows.length) return;
  const place = selected === null ? (by > 0 ? -1 : rows.length) : rows.indexOf(selected);
  choose(rows[Math.max(0, Math.min(rows.length - 1, place + by))]);
}

function toggleMask(k) {
  if (!hiddenMasks.delete(k)) hiddenMasks.add(k);
  showMasks();
}

function toggleLabel(label) {
  if (!hiddenLabels.delete(label)) hiddenLabels.add(label);
  showMasks();
}

function showAll() {
  hiddenMasks.clear();
  hiddenLabels.clear();
  showMasks();
}

function judge(decision, whole) {
  if (!shown) return;
  const { entry, details, place } = shown;
  decide(entry, whole ? null : selected, decision, details);
  showMasks();
  showImageDecision();
  redrawTile(place);
}

// --- the panel at the side ---

function showSide() {
  const { entry, details } = shown, parts = [];
  const file = element("p", "file");
  if (details.path.startsWith("file:")) {
    const link = element("a", "", "Open the original");
    link.id = "original";
    link.href = details.path;
    link.target = "_blank";
    file.append(link);
  } else file.append(element("span", "", details.path));
  if (details.size) file.append(element("span", "quiet", `${details.size[0]} × ${details.size[1]} pixels`));
  file.append(element("span", "file-note quiet", ""));
  parts.push(file);
  const judged = element("div", "judged");
  judged.id = "judged";
  parts.push(judged);
  if (details.masks?.length) {
    parts.push(labelChips(entry), maskList(entry), element("section", "why"));
    parts.at(-1).id = "why";
    parts.at(-1).setAttribute("aria-live", "polite");
  } else if (details.masks) parts.push(element("p", "quiet", "No label was found in this image."));
  at("side").replaceChildren(...parts);
  showImageDecision();
}

function showImageDecision() {
  const box = at("judged"), kind = decisionOf(shown.entry)?.decision;
  if (!box) return;
  box.replaceChildren(element("span", "quiet", "Image"), ...KINDS.map((one) => {
    const made = button(`judge ${one}`, `${SIGNS[one]} ${one}`, "", () => judge(one, true));
    made.setAttribute("aria-pressed", kind === one);
    return made;
  }));
}

function labelChips(entry) {
  const counts = new Map(), box = element("div", "chips");
  for (let k = 0; k < maskCount(entry); k++) counts.set(maskOf(entry, k)[LABEL], (counts.get(maskOf(entry, k)[LABEL]) ?? 0) + 1);
  box.id = "labels";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Labels that are shown");
  for (const [label, count] of [...counts].sort((a, b) => a[0] - b[0])) {
    const chip = button("chip", "", "Show or hide the masks of this label", () => toggleLabel(label));
    chip.dataset.label = label;
    chip.append(swatch(label), element("bdi", "", run.labels[label]), element("span", "quiet", count));
    box.append(chip);
  }
  return box;
}

function swatch(label) {
  const made = element("span", "swatch");
  made.style.background = run.colours[label];
  return made;
}

function maskList(entry) {
  const list = element("ul", "rows");
  list.id = "masks";
  for (const k of listed()) {
    const [label, sure, part, source] = maskOf(entry, k), row = element("li", "row"), box = element("input");
    row.dataset.mask = k;
    box.type = "checkbox";
    box.setAttribute("aria-label", `Show mask ${k + 1}, ${run.labels[label]}`);
    box.addEventListener("change", () => toggleMask(k));
    const pick = button("pick", "", "", () => choose(selected === k ? null : k));
    const bar = element("span", sure < run.unsure ? "sureness low" : "sureness");
    bar.style.setProperty("--part", `${sure / 10}%`);
    pick.append(swatch(label), element("bdi", "label", run.labels[label]), bar, element("span", "number", confidence(sure)),
      element("span", "number quiet", share(part)), element("span", "mark"));
    pick.setAttribute("aria-label", `${run.labels[label]}, confidence ${confidence(sure)}, ${share(part)} of the image, ` +
      `drawn by ${run.sources[source] === "sam" ? "SAM" : "the dense map"}`);
    row.append(box, pick);
    row.addEventListener("pointerenter", () => light(k));
    row.addEventListener("pointerleave", () => light(null));
    pick.addEventListener("focus", () => light(k));
    pick.addEventListener("blur", () => light(null));
    list.append(row);
  }
  return list;
}

// --- the tools above the picture ---

const TOOLS = [
  ["tool-masks", "masks", () => setOpacity(state.masks ? 0 : state.layer)],
  ["tool-outlines", "outlines", () => look({ outlines: !state.outlines })],
  ["tool-side", "side", () => look({ view: state.view === "side" ? "" : "side" })],
  ["tool-edited", "edited", () => look({ view: modeOf() === "edited" ? "masks" : "edited" })],
  ["tool-dense", "dense", () => look({ dense: !state.dense })],
  ["tool-prompts", "prompts", () => look({ prompts: !state.prompts })],
];

function look(values) {
  if (!shown) return;
  Object.assign(state, values);
  showStage();
  writeAddress();
}

function showTools() {
  if (!shown) return;
  const { details } = shown, mode = modeOf();
  const pressed = { masks: state.masks, outlines: state.outlines, side: mode === "side", edited: mode === "edited",
    dense: state.dense, prompts: state.prompts };
  const able = { masks: details.masks, outlines: details.masks, side: details.masks, edited: details.edited,
    dense: details.dense, prompts: details.prompts };
  for (const [id, name] of TOOLS) {
    at(id).setAttribute("aria-pressed", Boolean(pressed[name]));
    at(id).disabled = !able[name];
    at(id).hidden = name === "edited" && !run.edited;
  }
  at("tool-dense").title = details.dense || !details.masks ? "Dense map (d)" : details.dense_error || run.dense.reason || run.dense.limited;
  at("tool-prompts").title = details.prompts ? "Prompts of SAM2 (q)" : "This run has kept no prompts.";
  at("viewer-opacity").value = state.masks ? state.layer : 0;
  showMasks();
}

function showTip(event, text) {
  const tip = at("tip");
  tip.textContent = text;
  tip.hidden = !text;
  const room = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - room.width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + room.height > innerHeight ? event.clientY - room.height - 10 : event.clientY + 18}px`;
}

function hideTip() { at("tip").hidden = true; }

function pointed(event) {
  if (!shown?.details.masks) return;
  const path = event.target.closest?.(".mask"), dot = event.target.closest?.(".dot");
  if (dot) return showTip(event, dot.dataset.text);
  const k = path ? Number(path.dataset.mask) : null;
  light(k);
  if (state.dense && shown.details.dense && modeOf() !== "edited") {
    const found = denseAt(event);
    if (found) return showTip(event, found);
  }
  if (k === null) return hideTip();
  const [label, sure] = maskOf(shown.entry, k);
  showTip(event, `${run.labels[label]}, confidence ${confidence(sure)}`);
}

function listenToViewer() {
  for (const [id, , act] of TOOLS) at(id).addEventListener("click", act);
  at("viewer-opacity").addEventListener("input", () => setOpacity(Number(at("viewer-opacity").value)));
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => at("viewer").close());
  at("slider").addEventListener("input", compare);
  at("viewer").addEventListener("close", closed);
  at("stage").addEventListener("pointermove", pointed);
  at("stage").addEventListener("pointerleave", () => { light(null); hideTip(); });
}
