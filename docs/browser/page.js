// The page: opens the model, takes images from a file, a drop or the camera, draws boxes and lists them.

import { Detector } from "./detector.js";

const element = (id) => document.getElementById(id);
const [canvas, status, rows] = [element("canvas"), element("status"), element("rows")];
const context = canvas.getContext("2d", { willReadFrequently: true });

let detector = null;
let image = null; // the last one, as ImageData without boxes
let stream = null; // of the camera while it runs
let isBusy = false;
let isStale = false; // a setting or the image changed while the model was busy

function report(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

/** Run a task that the user started, and show its error on the page. */
async function attempt(task) {
  try {
    await task();
  } catch (error) {
    report(error.message ?? String(error), true);
  }
}

async function openModel(bytes, name) {
  report(`Opening ${name} ...`);
  detector = await Detector.open(bytes);
  const [height, width] = detector.size;
  element("model").textContent = `${name}: ${Object.keys(detector.names).length || "unnamed"} classes, ${height} x ${width}`;
  report("Drop an image, choose one, or start the camera.");
  await redraw();
}

/** Take a dropped or chosen file: a model or an image. */
async function openFile(file) {
  if (file.name.toLowerCase().endsWith(".onnx")) {
    await openModel(new Uint8Array(await file.arrayBuffer()), file.name);
    return;
  }
  stopCamera();
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${file.name} is no image that this browser reads, and no .onnx file`);
  });
  capture(bitmap, bitmap.width, bitmap.height);
  if (detector) report(`Detecting in ${file.name} ...`);
  await redraw();
}

function capture(source, width, height) {
  [canvas.width, canvas.height] = [width, height];
  context.drawImage(source, 0, 0);
  image = context.getImageData(0, 0, width, height);
}

/** Detect in the present image and show what is found. */
async function redraw() {
  if (!detector || !image) return;
  if (isBusy) {
    isStale = true;
    return;
  }
  isBusy = true;
  try {
    do {
      isStale = false;
      const [shown, start] = [image, performance.now()];
      const found = await detector.detect(shown, {
        confidence: Number(element("confidence").value),
        iou: Number(element("iou").value),
      });
      show(shown, found, performance.now() - start);
    } while (isStale);
  } finally {
    isBusy = false;
  }
}

function show(shown, found, milliseconds) {
  [canvas.width, canvas.height] = [shown.width, shown.height];
  context.putImageData(shown, 0, 0);
  const line = Math.max(2, Math.round((shown.width + shown.height) / 500));
  for (const box of [...found].reverse()) drawBox(box, line);
  rows.replaceChildren(...found.map(tableRow));
  element("result").hidden = false;
  report(`${found.length} object${found.length === 1 ? "" : "s"} in ${Math.round(milliseconds)} ms`);
}

function drawBox({ x1, y1, x2, y2, score, class: number, label }, line) {
  const [color, text] = [colorOf(number), `${label} ${score.toFixed(2)}`];
  context.font = `${6 * line}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const [width, height] = [context.measureText(text).width + 2 * line, 7 * line];
  const [left, top] = [Math.min(Math.max(x1, 0), Math.max(canvas.width - width, 0)), Math.max(y1 - height, 0)];
  context.lineWidth = line;
  context.strokeStyle = context.fillStyle = color;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.fillRect(left, top, width, height);
  context.fillStyle = "#000";
  context.fillText(text, left + line, top + line / 2);
}

/** Return a bright color of a class. Hues of classes that follow each other are far apart: by the golden angle. */
function colorOf(number) {
  return `hsl(${(number * 137.5) % 360} 90% 65%)`;
}

function tableRow({ x1, y1, x2, y2, score, label }) {
  const row = document.createElement("tr");
  for (const text of [label, score.toFixed(3), ...[x1, y1, x2, y2].map((side) => side.toFixed(1))]) {
    row.insertCell().textContent = text; // a name from a model file is text, never markup
  }
  return row;
}

async function toggleCamera() {
  if (stream) {
    stopCamera();
    return;
  }
  if (!navigator.mediaDevices) throw new Error("the camera needs this page at http://localhost or over https");
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  element("camera").textContent = "Stop the camera";
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  while (stream) {
    capture(video, video.videoWidth, video.videoHeight);
    await redraw();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera").textContent = "Start the camera";
}

for (const name of ["confidence", "iou"]) {
  element(name).addEventListener("input", () => {
    element(`${name}-value`).textContent = Number(element(name).value).toFixed(2);
    attempt(redraw);
  });
}
element("file").addEventListener("change", ({ target }) => attempt(() => openFile(target.files[0])));
element("camera").addEventListener("click", () => attempt(toggleCamera).finally(() => stream ?? stopCamera()));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => openFile(file));
});

await attempt(async () => {
  const response = await fetch("best.onnx");
  if (response.ok) await openModel(new Uint8Array(await response.arrayBuffer()), "best.onnx");
  else report("There is no best.onnx beside this page: drop or choose an .onnx file.");
});
