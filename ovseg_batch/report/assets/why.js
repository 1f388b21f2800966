"use strict";

// Why a mask is there: its figures, the dense map within it, and what competed with it.

function fact(name, value, text) {
  const parts = [element("dt", "", name), element("dd", "", value)];
  if (text) parts[1].append(element("small", "", text));
  return parts;
}

function showWhy() {
  const box = at("why");
  if (!box) return;
  if (selected === null) {
    box.replaceChildren(element("p", "quiet", "Choose a mask in the picture or in the list to see why it is there."));
    return;
  }
  const { entry, details } = shown, [label, sure, part, source] = maskOf(entry, selected), mask = details.masks[selected];
  const [coverage, iou, stability, margin] = mask.figures, facts = element("dl", "facts");
  const judged = element("div", "judged");
  judged.append(...KINDS.map((one) => {
    const made = button(`judge ${one}`, `${SIGNS[one]} ${one}`, "", () => { judge(one, false); showWhy(); });
    made.setAttribute("aria-pressed", maskDecision(entry, selected) === one);
    return made;
  }));
  const title = element("h3");
  title.append(swatch(label), element("bdi", "", run.labels[label]));
  facts.append(
    ...fact("Confidence", confidence(sure), sure < run.unsure ? "unsure: look at it" : ""),
    ...fact("Outline", run.sources[source] === "sam" ? "drawn by SAM" : "taken from the dense map", run.models.sam && source === 0 ? run.models.sam : ""),
    ...denseFacts(mask),
    ...fact("Lead of the label over the next", margin === null ? "not known" : margin.toFixed(2), "mean over the mask, 0 to 1"),
    ...fact("Vote", coverage === null ? "none" : `${(coverage * 100).toFixed(0)} %`, "of the mask has the label in the dense map"),
  );
  if (iou !== null) facts.append(...fact("IoU that SAM predicts", iou.toFixed(2), "0 to 1"));
  if (stability !== null) facts.append(...fact("Stability of SAM's outline", stability.toFixed(2), "0 to 1"));
  facts.append(...fact("Size", share(part), `${counted(mask.area, "pixel")}`));
  if (mask.reason) facts.append(...fact("Chosen because", mask.reason));
  facts.append(...rivals(mask));
  box.replaceChildren(title, judged, facts);
}

function denseFacts(mask) {
  if (!mask.dense) return fact("Dense map", "not shown", shown.details.dense_error || run.dense.reason || run.dense.limited);
  const said = mask.dense.map(([k, thousandths]) => `${run.dense.names[k]} ${confidence(thousandths)}`);
  return fact("Dense map within the mask", said.join(", then "), `mean probability${run.models.clip ? `, ${run.models.clip}` : ""}`);
}

function rivals(mask) {
  const { entry, details } = shown, found = [];
  for (const [other, iou, inside] of mask.rivals ?? []) {
    const [label] = maskOf(entry, other), item = element("li");
    const link = button("link", `${run.labels[label]}`, "", () => choose(other));
    item.append(link, document.createTextNode(`: IoU ${iou.toFixed(2)}, covers ${(inside * 100).toFixed(0)} % of this mask`));
    item.addEventListener("pointerenter", () => light(other));
    item.addEventListener("pointerleave", () => light(null));
    found.push(item);
  }
  for (const [x, y, label, outcome] of details.prompts ?? []) {
    if (outcome === "kept" || !isInside(x, y)) continue;
    found.push(element("li", "", `prompt of ${label}: ${run.outcomes[outcome] ?? outcome}`));
  }
  const list = element("ul");
  list.append(...found.slice(0, 12));
  if (!found.length) {
    const text = details.prompts ? "no mask overlaps it, and no other prompt lies inside" : "no mask overlaps it";
    return fact("What competed", text, details.prompts ? "" : "this run has kept no prompts");
  }
  const parts = fact("What competed", "");
  parts[1].append(list);
  return parts;
}

function isInside(x, y) {
  const path = document.querySelector(`.mask[data-mask="${selected}"]`);
  return Boolean(path?.isPointInFill(new DOMPoint(x, y)));
}

// --- the dense map ---

let denseCells = null; // { h, w, best, second }

function denseLayer([h, w, runs]) {
  const best = new Uint16Array(h * w), second = new Uint16Array(h * w), canvas = element("canvas", "dense");
  for (let k = 0, cell = 0; k < runs.length; k += 3) {
    best.fill(runs[k + 1], cell, cell + runs[k]);
    second.fill(runs[k + 2], cell, cell + runs[k]);
    cell += runs[k];
  }
  denseCells = { h, w, best, second };
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d"), pixels = context.createImageData(w, h);
  for (let cell = 0; cell < h * w; cell++) {
    const colour = run.dense.colours[best[cell]];
    for (let part = 0; part < 3; part++) pixels.data[4 * cell + part] = parseInt(colour.slice(1 + 2 * part, 3 + 2 * part), 16);
    pixels.data[4 * cell + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function denseAt(event) {
  const canvas = document.querySelector("canvas.dense");
  if (!canvas || !denseCells) return "";
  const box = canvas.getBoundingClientRect(), { h, w, best, second } = denseCells;
  const column = Math.floor(((event.clientX - box.left) / box.width) * w), row = Math.floor(((event.clientY - box.top) / box.height) * h);
  if (column < 0 || row < 0 || column >= w || row >= h) return "";
  const cell = row * w + column, names = run.dense.names;
  return names.length > 1 ? `${names[best[cell]]}, then ${names[second[cell]]}` : names[best[cell]];
}

// A prompt is a path of no length with round ends, so that it keeps its size on the screen.
function dots([x, y, label, outcome]) {
  return ["halo", outcome === "kept" || outcome === "merged" || outcome === "blended" ? "good" : "lost"].map((kind) => {
    const dot = document.createElementNS(SVG, "path");
    dot.setAttribute("d", `M${x} ${y}h0`);
    dot.setAttribute("class", `dot ${kind}`);
    dot.dataset.text = `prompt of ${label}: ${run.outcomes[outcome] ?? outcome}`;
    return dot;
  });
}
