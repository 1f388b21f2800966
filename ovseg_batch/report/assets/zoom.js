"use strict";

// Zoom and pan of the picture. Both panes of the side-by-side view move together.
const zoom = { scale: 1, x: 0, y: 0 }; // x and y: pixels of the screen from the centre
const MOST_ZOOM = 32, STEP = 1.25;

function resetZoom() {
  Object.assign(zoom, { scale: 1, x: 0, y: 0 });
  placeSheets();
}

function fitted() {
  const box = document.querySelector(".pane"), size = shown?.details.size ?? shown?.natural ?? [4, 3];
  const room = box?.getBoundingClientRect() ?? { width: 1, height: 1 };
  const fit = Math.min(room.width / size[0], room.height / size[1]);
  return { width: size[0] * fit, height: size[1] * fit, room, fit };
}

function placeSheets() {
  const { width, height, room, fit } = fitted();
  const free = (wide, most) => Math.max(0, (wide * zoom.scale - most) / 2 + (zoom.scale > 1 ? most / 3 : 0));
  zoom.x = Math.max(-free(width, room.width), Math.min(free(width, room.width), zoom.x));
  zoom.y = Math.max(-free(height, room.height), Math.min(free(height, room.height), zoom.y));
  for (const sheet of document.querySelectorAll(".sheet")) {
    sheet.style.width = `${width}px`;
    sheet.style.height = `${height}px`;
    sheet.style.transform =
      `translate(-50%, -50%) translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
    sheet.classList.toggle("close", fit * zoom.scale > 3);
  }
  at("stage").classList.toggle("zoomed", zoom.scale > 1);
  at("zoom-value").textContent = shown?.details.size ? `${Math.round(fit * zoom.scale * 100)} %` : "";
}

function zoomBy(factor, event) {
  const scale = Math.max(1, Math.min(MOST_ZOOM, zoom.scale * factor)), change = scale / zoom.scale;
  let x = 0, y = 0; // the point that stays, from the centre of its pane
  if (event) {
    const box = (event.target.closest?.(".pane") ?? document.querySelector(".pane"))?.getBoundingClientRect();
    if (box) [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }
  zoom.x = x - (x - zoom.x) * change;
  zoom.y = y - (y - zoom.y) * change;
  zoom.scale = scale;
  if (scale === 1) Object.assign(zoom, { x: 0, y: 0 });
  placeSheets();
}

function panBy(x, y) {
  zoom.x += x;
  zoom.y += y;
  placeSheets();
}

function listenToZoom() {
  const stage = at("stage"), pointers = new Map();
  let moved = false, apart = 0;
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), event);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("button, a")) return;
    pointers.set(event.pointerId, event);
    moved = pointers.size > 1;
    apart = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const x = event.clientX - before.clientX, y = event.clientY - before.clientY;
    if (!moved && Math.hypot(x, y) < 4) return;
    if (!moved) stage.setPointerCapture(event.pointerId);
    moved = true;
    pointers.set(event.pointerId, event);
    if (pointers.size === 1) return panBy(x, y);
    const [a, b] = pointers.values(), now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    const middle = { target: stage.querySelector(".pane"), clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 };
    if (apart) zoomBy(now / apart, middle);
    apart = now;
  });
  const released = (event) => {
    if (!pointers.delete(event.pointerId) || moved || event.type === "pointercancel") return;
    const path = event.target.closest?.(".mask"), k = path ? Number(path.dataset.mask) : null;
    if (shown?.details.masks) choose(k === selected ? null : k);
  };
  stage.addEventListener("pointerup", released);
  stage.addEventListener("pointercancel", released);
  stage.addEventListener("dblclick", (event) => (zoom.scale > 1 ? resetZoom() : zoomBy(4, event)));
  at("zoom-in").addEventListener("click", () => zoomBy(STEP));
  at("zoom-out").addEventListener("click", () => zoomBy(1 / STEP));
  at("zoom-fit").addEventListener("click", resetZoom);
  new ResizeObserver(placeSheets).observe(stage);
}
