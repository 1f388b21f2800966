"use strict";

// Which images, in which order; and the grid, of which only the tiles near the screen exist.
const CAPTION = 52, BEYOND = 3; // pixels; rows of tiles kept ready above and below
const cells = new Map(); // place in `view` → its element

function select() {
  const name = state.name.trim().toLowerCase(), wanted = maskFilter(), byMasks = ofMasks();
  const found = [];
  for (let k = 0; k < entries.length; k++) {
    const entry = entries[k];
    if (name && !entry[NAME].toLowerCase().includes(name)) continue;
    if (byMasks && !hasMask(entry, wanted)) continue;
    if (state.show && !isShown(entry)) continue;
    if (state.decided && !isDecided(entry, state.decided)) continue;
    found.push(k);
  }
  const by = {
    // failed images come last: they have no confidence
    unsure: (a, b) => (a[CODE] >= 0) - (b[CODE] >= 0) || sumsOf(b).doubt - sumsOf(a).doubt,
    sure: (a, b) => (a[CODE] >= 0) - (b[CODE] >= 0) || sumsOf(a).doubt - sumsOf(b).doubt,
    masks: (a, b) => maskCount(b) - maskCount(a),
    few: (a, b) => (a[CODE] >= 0) - (b[CODE] >= 0) || maskCount(a) - maskCount(b),
    name: (a, b) => (a[NAME] < b[NAME] ? -1 : a[NAME] > b[NAME] ? 1 : 0),
  }[state.order];
  if (by) found.sort((a, b) => by(entries[a], entries[b]) || a - b);
  view = found;
  current = Math.min(current, Math.max(view.length - 1, 0));
  const loading = entries.length < run.entries ? `; loading, ${entries.length.toLocaleString("en")} so far` : "";
  at("count").textContent = `${view.length.toLocaleString("en")} of ${counted(run.entries, "image")}${loading}`;
  at("empty").hidden = view.length > 0 || entries.length < run.entries;
  redrawAll();
  writeAddress();
}

function hasMask(entry, wanted) {
  for (let k = 0; k < entry[MASKS].length; k += FIELDS) if (wanted(entry[MASKS], k)) return true;
  return false;
}

function isShown(entry) {
  const failed = entry[CODE] >= 0;
  switch (state.show) {
    case "masks": return maskCount(entry) > 0;
    case "unsure": return sumsOf(entry).unsure > 0;
    case "empty": return !failed && maskCount(entry) === 0;
    case "edited": return entry[EDITED] !== "";
    case "failed": return failed;
    default: return failed && run.codes[entry[CODE]] === state.show.slice(7);
  }
}

function redrawAll() {
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  draw();
}

function shape() {
  const wide = at("grid").clientWidth;
  const least = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--tile"), 10);
  const columns = Math.max(1, Math.floor(wide / least));
  const width = wide / columns;
  return { columns, width, height: Math.round(width * 0.78) + CAPTION };
}

function draw() {
  const grid = at("grid"), { columns, width, height } = shape();
  const rows = Math.ceil(view.length / columns);
  grid.style.height = `${rows * height}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / height) - BEYOND) * columns;
  const last = Math.min(view.length, (Math.ceil((top + innerHeight) / height) + BEYOND) * columns);
  for (const [place, cell] of cells) {
    if ((place < first || place >= last) && !cell.contains(document.activeElement)) { cell.remove(); cells.delete(place); }
  }
  for (let place = first; place < last; place++) {
    if (!cells.has(place)) {
      const cell = tile(place);
      cells.set(place, cell);
      grid.append(cell);
    }
    const cell = cells.get(place);
    cell.style.transform = `translate(${(place % columns) * width}px, ${Math.floor(place / columns) * height}px)`;
    cell.style.width = `${width}px`;
    cell.style.height = `${height}px`;
  }
}

function tile(place) {
  const entry = entries[view[place]], failed = entry[CODE] >= 0;
  const cell = element("div", "cell"), made = button(failed ? "tile failed" : "tile", "");
  cell.setAttribute("role", "listitem");
  cell.setAttribute("aria-setsize", view.length);
  cell.setAttribute("aria-posinset", place + 1);
  made.tabIndex = place === current ? 0 : -1;
  made.dataset.place = place;
  for (const [field, kind, name] of [[IMAGE, "images", "photo"], [LAYER, "masks", "layer"]]) {
    if (!entry[field]) continue;
    const image = element("img", name);
    image.decoding = "async";
    image.alt = "";
    if (name === "photo") image.addEventListener("load", pictured, { once: true });
    image.src = picture(kind, entry[ROW], entry[field]);
    made.append(image);
  }
  if (failed) made.append(element("span", "why", run.codes[entry[CODE]].replaceAll("_", " ")));
  else if (!entry[IMAGE]) made.append(element("span", "why quiet", "no preview"));
  const caption = element("span", "caption"), state = failed ? "failed" : summary(entry);
  caption.append(element("bdi", "name", entry[NAME]), element("span", "sure", state));
  made.append(caption);
  const decided = badges(entry);
  if (decided) made.append(decided);
  made.setAttribute("aria-label", `${entry[NAME]}, ${failed ? `failed: ${run.codes[entry[CODE]]}` : state}`);
  cell.append(made);
  return cell;
}

let isPictured = false;
function pictured() {
  if (!isPictured) performance.mark("first picture");
  isPictured = true;
}

function redrawTile(place) {
  const old = cells.get(place);
  if (!old) return;
  const cell = tile(place), focused = old.contains(document.activeElement);
  cell.style.cssText = old.style.cssText;
  old.replaceWith(cell);
  cells.set(place, cell);
  if (focused) cell.firstChild.focus({ preventScroll: true });
}

function go(place) {
  place = Math.max(0, Math.min(view.length - 1, place));
  if (!view.length) return;
  const { columns, height } = shape(), grid = at("grid").getBoundingClientRect();
  const top = grid.top + Math.floor(place / columns) * height;
  const head = getComputedStyle(at("controls")).position === "sticky" ? at("controls").offsetHeight : 0;
  if (top < head) scrollBy({ top: top - head - 8, behavior: "instant" });
  else if (top + height > innerHeight) scrollBy({ top: top + height - innerHeight + 8, behavior: "instant" });
  const before = cells.get(current);
  if (before) before.firstChild.tabIndex = -1;
  current = place;
  draw();
  const cell = cells.get(place);
  cell.firstChild.tabIndex = 0;
  cell.firstChild.focus({ preventScroll: true });
}

// --- the controls show the state, and change it ---

const CONTROLS = { name: "name", label: "label", show: "show", decided: "decided", order: "order", source: "source",
  least: "least", most: "most", smallest: "smallest", largest: "largest" };

function showControls() {
  for (const [id, name] of Object.entries(CONTROLS)) at(id).value = state[name];
  at("opacity").value = state.masks ? state.layer : 0;
  document.documentElement.style.setProperty("--layer", state.masks ? state.layer : 0);
  at("narrowed").textContent = state.source || narrowed() ? "on" : "";
  at("clear").hidden = Object.values(CONTROLS).every((name) => state[name] === DEFAULTS[name]);
}

function change(values) {
  Object.assign(state, values);
  showControls();
  select();
}

let waiting = 0;
function soon(work) {
  clearTimeout(waiting);
  waiting = setTimeout(work, 120);
}

function listenToControls() {
  for (const [id, name] of Object.entries(CONTROLS)) {
    const control = at(id), isNumber = control.type === "number";
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", () => {
      const value = isNumber ? (control.value === "" ? DEFAULTS[name] : Number(control.value)) : control.value;
      state[name] = value;
      at("narrowed").textContent = state.source || narrowed() ? "on" : "";
      at("clear").hidden = Object.values(CONTROLS).every((one) => state[one] === DEFAULTS[one]);
      if (control.tagName === "SELECT") select();
      else soon(select);
    });
  }
  at("opacity").addEventListener("input", () => setOpacity(Number(at("opacity").value)));
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("clear").addEventListener("click", clearFilters);
  at("more").addEventListener("click", () => showFilters(!at("controls").classList.contains("open")));
  for (const made of document.querySelectorAll("[data-failed]")) {
    made.addEventListener("click", () => {
      clearFilters();
      change({ show: `failed ${made.dataset.failed}` });
      at("gallery").scrollIntoView();
    });
  }
  at("grid").addEventListener("click", (event) => {
    const made = event.target.closest(".tile");
    if (made) open(Number(made.dataset.place));
  });
}

// On a phone the filters take no room until they are wanted.
function showFilters(open) {
  at("controls").classList.toggle("open", open);
  at("more").setAttribute("aria-expanded", open);
}

function clearFilters() {
  change(Object.fromEntries(Object.values(CONTROLS).map((name) => [name, DEFAULTS[name]])));
}

function setOpacity(value) {
  state.masks = value > 0;
  if (value > 0) state.layer = Math.round(value * 100) / 100;
  showControls();
  writeAddress();
  if (at("viewer").open) showTools();
}
