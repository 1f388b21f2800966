"use strict";

// The data of the page, and its state, which the address holds after "#", so that a reload or a bookmark restores it.
// An entry is [row, name, failure code number or -1, digest of the image, of its masks, of the edited image, masks,
// and its key where that is not the name]; masks are four numbers each: label, confidence in thousandths, share of the image in 1/100,000, source.
const ROW = 0, NAME = 1, CODE = 2, IMAGE = 3, LAYER = 4, EDITED = 5, MASKS = 6, KEY = 7;
const FIELDS = 4, LABEL = 0, SURE = 1, SHARE = 2, SOURCE = 3;

const run = JSON.parse(document.getElementById("run").textContent);
const at = (id) => document.getElementById(id);
const entries = [];
const pages = new Map(); // number → details, once they are loaded
let view = []; // places in `entries`, in the order shown
let current = 0; // place in `view` that has the focus

const DEFAULTS = {
  name: "", label: "", show: "", decided: "", order: "unsure", source: "",
  least: 0, most: 1, smallest: 0, largest: 100, // confidence, and per cent of the image
  layer: 0.55, masks: true, outlines: false, view: "", dense: false, prompts: false, image: "", mask: "",
};
const state = { ...DEFAULTS };

window.OVSEG = {
  add(chunk) { for (const entry of chunk) entries.push(entry); },
  details(number, list) { pages.set(number, list); },
  begin(record) { OVSEG.given = record; },
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

async function detailsOf(place) {
  const number = Math.floor(place / run.page);
  if (!pages.has(number)) await load(`data/details-${String(number).padStart(5, "0")}.js`);
  return pages.get(number)[place % run.page];
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(className, text, title, act) {
  const made = element("button", className, text);
  made.type = "button";
  if (title) made.title = title;
  if (act) made.addEventListener("click", act);
  return made;
}

const picture = (kind, row, digest) =>
  `${kind}/${String(Math.floor(row / 1000)).padStart(5, "0")}/${String(row).padStart(8, "0")}-${digest}.webp`;

const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const maskCount = (entry) => entry[MASKS].length / FIELDS;
const maskOf = (entry, k) => entry[MASKS].slice(k * FIELDS, k * FIELDS + FIELDS);
const keyOf = (entry) => entry[KEY] ?? entry[NAME];

function confidence(thousandths) {
  return thousandths < 10 ? (thousandths ? "under 0.01" : "0") : (thousandths / 1000).toFixed(2);
}

function share(steps) {
  const percent = steps / 1000;
  return percent < 0.01 ? "under 0.01 %" : `${percent < 1 ? percent.toFixed(2) : percent.toFixed(1)} %`;
}

// Sums of an entry, computed once.
const sums = new Map();
function sumsOf(entry) {
  let found = sums.get(entry[ROW]);
  if (!found) {
    let unsure = 0, doubt = 0;
    for (let k = SURE; k < entry[MASKS].length; k += FIELDS) {
      unsure += entry[MASKS][k] < run.unsure;
      doubt += 1000 - entry[MASKS][k];
    }
    found = { unsure, doubt };
    sums.set(entry[ROW], found);
  }
  return found;
}

function summary(entry) {
  const masks = maskCount(entry), { unsure } = sumsOf(entry);
  return unsure ? `${unsure} of ${counted(masks, "mask")} unsure` : masks ? counted(masks, "mask") : "no masks";
}

// --- the filter of masks ---

const ofMasks = () => state.label !== "" || state.source !== "" || narrowed();
const narrowed = () => state.least > 0 || state.most < 1 || state.smallest > 0 || state.largest < 100;

function maskFilter() {
  const label = state.label === "" ? -1 : run.labels.indexOf(state.label), source = run.sources.indexOf(state.source);
  const least = Math.round(state.least * 1000), most = Math.round(state.most * 1000);
  const small = state.smallest * 1000, large = state.largest * 1000;
  return (masks, k) =>
    (label < 0 || masks[k + LABEL] === label) && masks[k + SURE] >= least && masks[k + SURE] <= most &&
    masks[k + SHARE] >= small && masks[k + SHARE] <= large && (source < 0 || masks[k + SOURCE] === source);
}

// --- the address ---

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = given.get(name);
    if (value === null) state[name] = usual;
    else if (typeof usual === "number") state[name] = Number.isFinite(Number(value)) ? Number(value) : usual;
    else state[name] = typeof usual === "boolean" ? value === "yes" : value;
  }
  if (!run.labels.includes(state.label)) state.label = "";
  if (!run.sources.includes(state.source)) state.source = "";
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    if (state[name] !== usual) kept.set(name, typeof usual === "boolean" ? (state[name] ? "yes" : "no") : state[name]);
  }
  const text = kept.toString();
  if (text === location.hash.slice(1)) return;
  try {
    history.replaceState(null, "", `#${text}`);
  } catch { // browsers limit the number of changes in a time
    location.replace(`#${text}`);
  }
}
