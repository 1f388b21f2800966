"use strict";

// What a person has decided: key of the image → { digest of its masks, decision, masks: index → [decision, label, box] }.
// It is kept in this browser under the name of the run, and saved as the file that docs/formats.md describes.
const KINDS = ["right", "wrong", "unsure"], SIGNS = { right: "✓", wrong: "✕", unsure: "?" };
const STORE = `ovseg_batch decisions ${run.fingerprint} ${run.workdir}`;
let decided = new Map();
let notice = "";

const decisionOf = (entry) => decided.get(keyOf(entry));
const maskDecision = (entry, k) => decisionOf(entry)?.masks.get(k)?.[0];

function keep() {
  const plain = [...decided].map(([key, one]) => [key, one.digest, one.decision, [...one.masks]]);
  try {
    if (plain.length) localStorage.setItem(STORE, JSON.stringify(plain));
    else localStorage.removeItem(STORE);
  } catch {
    notice = "This browser keeps nothing for this page: save the decisions before you close it.";
  }
  showDecisions();
}

function recall() {
  let plain = [];
  try {
    plain = JSON.parse(localStorage.getItem(STORE) ?? "[]");
  } catch {
    notice = "This browser keeps nothing for this page: save the decisions before you close it.";
  }
  const present = new Map(entries.map((entry) => [keyOf(entry), entry[LAYER]]));
  let stale = 0;
  for (const [key, digest, decision, masks] of plain) {
    if (present.has(key) && present.get(key) !== digest) stale++;
    else decided.set(key, { digest, decision, masks: new Map(masks) });
  }
  if (OVSEG.given) take(OVSEG.given, false);
  if (stale) notice = `The masks of ${counted(stale, "image")} have changed. Their decisions are dropped.`;
  showDecisions();
}

function decide(entry, k, decision, details) {
  const key = keyOf(entry);
  const one = decided.get(key) ?? { digest: entry[LAYER], decision: null, masks: new Map() };
  if (k === null) one.decision = one.decision === decision ? null : decision;
  else if (one.masks.get(k)?.[0] === decision || decision === null) one.masks.delete(k);
  else one.masks.set(k, [decision, run.labels[maskOf(entry, k)[LABEL]], details.masks[k].bbox]);
  if (one.decision === null && !one.masks.size) decided.delete(key);
  else decided.set(key, one);
  keep();
}

function isDecided(entry, kind) {
  const one = decisionOf(entry);
  if (kind === "none") return !one;
  if (!one) return false;
  return kind === "any" || one.decision === kind || [...one.masks.values()].some(([decision]) => decision === kind);
}

function badges(entry) {
  const one = decisionOf(entry);
  if (!one) return null;
  const box = element("span", "badges");
  if (one.decision) box.append(element("span", `badge whole ${one.decision}`, SIGNS[one.decision]));
  for (const kind of KINDS) {
    const count = [...one.masks.values()].filter(([decision]) => decision === kind).length;
    if (count) box.append(element("span", `badge ${kind}`, `${SIGNS[kind]} ${count}`));
  }
  return box;
}

function showDecisions() {
  const counts = { right: 0, wrong: 0, unsure: 0 };
  let images = 0, masks = 0;
  for (const one of decided.values()) {
    images += one.decision !== null;
    masks += one.masks.size;
    if (one.decision) counts[one.decision]++;
    for (const [decision] of one.masks.values()) counts[decision]++;
  }
  at("decision-count").replaceChildren(
    element("strong", "", `${counted(masks, "mask")} and ${counted(images, "image")} decided`),
    ...KINDS.map((kind) => element("span", `badge ${kind}`, `${SIGNS[kind]} ${counts[kind]} ${kind}`)),
  );
  at("save").disabled = !images && !masks;
  at("forget").hidden = !images && !masks;
  at("notice").textContent = notice;
  at("notice").hidden = !notice;
}

// --- files ---

function download(name, kind, text) {
  const link = element("a"), address = URL.createObjectURL(new Blob([text], { type: kind }));
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function toRecord() {
  const names = new Map(entries.map((entry) => [keyOf(entry), entry[NAME]]));
  const images = [...decided].map(([key, one]) => ({
    key, file_name: names.get(key) ?? key, decision: one.decision,
    masks: [...one.masks].sort((a, b) => a[0] - b[0])
      .map(([index, [decision, label, bbox]]) => ({ index, label, bbox, decision })),
  }));
  images.sort((a, b) => (a.key < b.key ? -1 : 1));
  return { format: "ovseg_batch decisions", version: 1, run: { fingerprint: run.fingerprint, workdir: run.workdir }, images };
}

function save() {
  download(`${run.workdir}-decisions.json`, "application/json", `${JSON.stringify(toRecord(), null, 1)}\n`);
}

function saveNames() {
  download(`${run.workdir}-files.txt`, "text/plain", view.map((place) => `${entries[place][NAME]}\n`).join(""));
}

function take(record, replace) {
  if (record?.format !== "ovseg_batch decisions" || record.version !== 1 || !Array.isArray(record.images)) {
    throw new Error("This is no file of decisions that a report has saved.");
  }
  if (record.run?.fingerprint !== run.fingerprint) throw new Error("These decisions are about the masks of another run.");
  const byKey = new Map(entries.map((entry) => [keyOf(entry), entry]));
  let stale = 0;
  for (const image of record.images) {
    const entry = byKey.get(image.key), masks = new Map();
    for (const { index, label, bbox, decision } of image.masks ?? []) {
      if (entry && (index >= maskCount(entry) || run.labels[maskOf(entry, index)[LABEL]] !== label)) stale++;
      else if (KINDS.includes(decision)) masks.set(index, [decision, label, bbox]);
    }
    const decision = KINDS.includes(image.decision) ? image.decision : null;
    if ((decision || masks.size) && (replace || !decided.has(image.key))) {
      decided.set(image.key, { digest: entry ? entry[LAYER] : "", decision, masks });
    }
  }
  notice = stale ? `${counted(stale, "decision")} about masks that have changed are left out.` : "";
}

async function loadFile(file) {
  try {
    take(JSON.parse(await file.text()), true);
    keep();
    select();
  } catch (error) {
    notice = error instanceof SyntaxError ? "This file is no JSON." : error.message;
    showDecisions();
  }
}

function forget() {
  if (!confirm("Remove all decisions of this run from this browser? Save them first if you need them.")) return;
  decided = new Map();
  keep();
  select();
}

function listenToDecisions() {
  at("save").addEventListener("click", save);
  at("load").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    if (at("file").files.length) loadFile(at("file").files[0]);
    at("file").value = "";
  });
  at("names").addEventListener("click", saveNames);
  at("forget").addEventListener("click", forget);
}
