"use strict";

// An entry is [row, name, confidence of the least sure mask and doubt in thousandths, unsure masks, masks, label numbers,
// failure code number or -1, digest of the image, of its masks, of the edited image]. Only what is on the screen is in the page.
const ROW = 0, NAME = 1, SURE = 2, DOUBT = 3, UNSURE = 4, MASKS = 5, LABELS = 6, CODE = 7, IMAGE = 8, LAYER = 9, EDITED = 10;
const CAPTION = 34, BEYOND = 3; // pixels; rows of tiles kept ready above and below

const run = JSON.parse(document.getElementById("run").textContent);
const at = (id) => document.getElementById(id);
const entries = [];
const pages = new Map(); // number → details, once they are loaded
let view = []; // places in `entries`, in the order shown
let current = 0; // place in `view` that has the focus
const cells = new Map(); // place in `view` → its element

window.OVSEG = {
  add(chunk) { for (const entry of chunk) entries.push(entry); },
  details(number, list) { pages.set(number, list); },
};

function load(path) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => { script.remove(); done(); };
    script.onerror = () => failed(new Error(`${path} cannot be read`));
    document.head.append(script);
  });
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const picture = (kind, row, digest) =>
  `${kind}/${String(Math.floor(row / 1000)).padStart(5, "0")}/${String(row).padStart(8, "0")}-${digest}.webp`;

// --- which images, in which order ---

function select() {
  const name = at("name").value.trim().toLowerCase();
  const label = at("label").value === "" ? null : Number(at("label").value);
  const show = at("show").value, most = Math.round(Number(at("most").value) * 1000);
  const found = [];
  for (let k = 0; k < entries.length; k++) {
    const entry = entries[k], failed = entry[CODE] >= 0;
    if (name && !entry[NAME].toLowerCase().includes(name)) continue;
    if (label !== null && !entry[LABELS].includes(label)) continue;
    if (!failed && entry[SURE] > most) continue;
    if (failed && most < 1000) continue;
    if (show === "masks" && !entry[MASKS]) continue;
    if (show === "unsure" && !entry[UNSURE]) continue;
    if (show === "empty" && (failed || entry[MASKS])) continue;
    if (show === "edited" && !entry[EDITED]) continue;
    if (show.startsWith("failed") && (!failed || (show !== "failed" && run.codes[entry[CODE]] !== show.slice(7)))) continue;
    found.push(k);
  }
  const order = at("order").value;
  const by = {
    unsure: (a, b) => (a[CODE] >= 0) - (b[CODE] >= 0) || b[DOUBT] - a[DOUBT], // what failed has a place of its own
    sure: (a, b) => a[DOUBT] - b[DOUBT],
    masks: (a, b) => b[MASKS] - a[MASKS],
  }[order];
  if (by) found.sort((a, b) => by(entries[a], entries[b]) || a - b);
  view = found;
  current = Math.min(current, Math.max(view.length - 1, 0));
  const loading = entries.length < run.entries ? `; loading ${entries.length.toLocaleString()} …` : "";
  at("count").textContent =
    `${view.length.toLocaleString()} of ${run.entries.toLocaleString()} images${loading}`;
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  draw();
}

// --- the grid: only the tiles near the screen exist ---

function shape() {
  const wide = at("grid").clientWidth;
  const least = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--tile"), 10);
  const columns = Math.max(1, Math.floor(wide / least));
  const width = wide / columns;
  return { columns, width, height: Math.round(width * 0.8) + CAPTION };
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
  const cell = element("div", "cell"), button = element("button", failed ? "tile failed" : "tile");
  cell.setAttribute("role", "listitem");
  cell.setAttribute("aria-setsize", view.length);
  cell.setAttribute("aria-posinset", place + 1);
  button.type = "button";
  button.tabIndex = place === current ? 0 : -1;
  button.dataset.place = place;
  for (const part of pictures(entry, "")) button.append(part);
  if (failed) button.append(element("span", "why", run.codes[entry[CODE]]));
  const caption = element("span", "caption");
  caption.append(element("bdi", "name", entry[NAME]));
  if (!failed) caption.append(element("span", "sure", summary(entry)));
  button.append(caption);
  const state = failed ? `failed: ${run.codes[entry[CODE]]}` : summary(entry);
  button.setAttribute("aria-label", `${entry[NAME]}, ${state}`);
  cell.append(button);
  return cell;
}

function summary(entry) {
  const masks = `${entry[MASKS]} ${entry[MASKS] === 1 ? "mask" : "masks"}`;
  return entry[UNSURE] ? `${entry[UNSURE]} of ${masks} unsure` : entry[MASKS] ? masks : "no masks";
}

function pictures(entry, text) {
  const parts = [];
  for (const [flag, kind, name] of [[IMAGE, "images", "photo"], [LAYER, "masks", "layer"]]) {
    if (entry[flag]) {
      const image = element("img", name);
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = name === "photo" ? text : "";
      image.src = picture(kind, entry[ROW], entry[flag]);
      parts.push(image);
    }
  }
  return parts;
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

// --- one image ---

async function open(place) {
  current = place;
  const entry = entries[view[place]], viewer = at("viewer"), stage = at("stage");
  at("viewer-name").textContent = entry[NAME];
  stage.replaceChildren();
  const before = element("div", "frame");
  const edited = Boolean(entry[EDITED]);
  for (const part of pictures(entry, entry[NAME])) if (!edited || part.className === "photo") before.append(part);
  stage.append(before);
  at("compare").hidden = !edited;
  if (edited) {
    const after = element("div", "frame after"), image = element("img");
    image.alt = `${entry[NAME]}, edited`;
    image.src = picture("edited", entry[ROW], entry[EDITED]);
    after.append(image);
    stage.append(after);
    compare();
  }
  if (!viewer.open) viewer.showModal();
  at("about").replaceChildren(element("p", "", "Loading …"));
  const number = Math.floor(view[place] / run.page);
  if (!pages.has(number)) await load(`data/details-${String(number).padStart(5, "0")}.js`);
  if (place === current) about(entry, pages.get(number)[view[place] % run.page]);
}

function about(entry, [path, message, masks]) {
  const parts = [];
  const where = element("p");
  if (path.startsWith("file:")) {
    const link = element("a", "", "Open the image");
    link.href = path;
    where.append(link);
  } else where.textContent = path;
  parts.push(where);
  if (message) parts.push(element("p", "", message));
  if (masks.length) {
    const table = element("table"), head = element("tr"), body = element("tbody"), top = element("thead");
    for (const name of ["Label", "Confidence", "Share of the image", "Outline"]) {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    top.append(head);
    for (const [label, sure, share, source] of masks) {
      const row = element("tr"), name = element("th");
      name.scope = "row";
      const swatch = element("span", "swatch");
      swatch.style.background = run.colours[label];
      name.append(swatch, document.createTextNode(run.labels[label]));
      row.append(name, element("td", "", sure.toFixed(3)), element("td", "", `${(share * 100).toFixed(2)} %`),
        element("td", "", source));
      body.append(row);
    }
    table.append(top, body);
    parts.push(table);
  }
  at("about").replaceChildren(...parts);
}

function compare() {
  const after = document.querySelector(".frame.after");
  if (after) after.style.clipPath = `inset(0 0 0 ${at("slider").value}%)`;
}

function step(by) {
  const place = current + by;
  if (place >= 0 && place < view.length) open(place);
}

// --- what a person does ---

let waiting = 0;
function soon(work) {
  clearTimeout(waiting);
  waiting = setTimeout(work, 120);
}

function opacity(value) { document.documentElement.style.setProperty("--layer", value); }

function listen() {
  for (const id of ["label", "show", "order"]) at(id).addEventListener("change", select);
  at("name").addEventListener("input", () => soon(select));
  at("most").addEventListener("input", () => {
    at("most-value").textContent = Number(at("most").value).toFixed(2);
    soon(select);
  });
  at("opacity").addEventListener("input", () => opacity(at("opacity").value));
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  for (const button of document.querySelectorAll("[data-failed]")) {
    button.addEventListener("click", () => {
      at("show").value = `failed ${button.dataset.failed}`;
      select();
      at("gallery").scrollIntoView();
    });
  }
  at("grid").addEventListener("click", (event) => {
    const button = event.target.closest(".tile");
    if (button) open(Number(button.dataset.place));
  });
  at("grid").addEventListener("keydown", (event) => {
    const { columns } = shape();
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -view.length, End: view.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    go(current + by);
  });
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => at("viewer").close());
  at("slider").addEventListener("input", compare);
  at("viewer").addEventListener("close", () => go(current));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    const viewing = at("viewer").open;
    if (viewing && event.key === "ArrowLeft") step(-1);
    else if (viewing && event.key === "ArrowRight") step(1);
    else if (event.key === "m") {
      at("opacity").value = Number(at("opacity").value) > 0 ? 0 : 0.55;
      opacity(at("opacity").value);
    } else if (event.key === "/" && !viewing) {
      event.preventDefault();
      at("name").focus();
    }
  });
  let drawing = false;
  const redraw = () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { drawing = false; draw(); });
  };
  addEventListener("scroll", redraw, { passive: true });
  new ResizeObserver(redraw).observe(document.body);
}

async function begin() {
  for (const [number, name] of run.labels.entries()) at("label").append(new Option(name, number));
  for (const code of run.codes) at("show").append(new Option(`failed: ${code}`, `failed ${code}`));
  listen();
  for (let chunk = 0; chunk < run.chunks; chunk++) {
    await load(`data/index-${String(chunk).padStart(5, "0")}.js`);
    if (chunk === 0 || chunk === run.chunks - 1 || chunk % 8 === 0) {
      select();
      if (chunk === 0) performance.mark("first view");
      await new Promise((done) => setTimeout(done));
    }
  }
  if (!run.chunks) select();
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => { at("count").textContent = error.message; });
