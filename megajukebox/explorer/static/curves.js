"use strict";
/* Reads a training curve under the pointer: a line at the step, and the values at it in place of the last ones. */
function nearest(points, step) {
  return points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), points[0]);
}

function short(value) {
  return Number(value.toPrecision(4)).toString();
}

for (const drawing of document.querySelectorAll(".curve svg")) {
  const series = Object.values(JSON.parse(drawing.dataset.series));
  const [low, high, left, right, top, bottom] = JSON.parse(drawing.dataset.axis);
  const keys = drawing.closest("figure").querySelector(".keys");
  const last = [...keys.children].map((key) => key.lastChild.textContent);
  const cursor = drawing.querySelector(".cursor");

  drawing.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse()).x;
    const step = low + ((Math.min(Math.max(at, left), right) - left) / (right - left)) * (high - low);
    const points = series.map((one) => (one.length ? nearest(one, step) : null));
    cursor.setAttribute("d", `M${Math.min(Math.max(at, left), right)} ${top}V${bottom}`);
    points.forEach((point, n) => {
      if (point) keys.children[n].lastChild.textContent = ` ${short(point[1])} at ${point[0]}`;
    });
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "");
    last.forEach((text, n) => { keys.children[n].lastChild.textContent = text; });
  });
}
