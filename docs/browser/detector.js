// A detector in ONNX: what its file says, how an image becomes its input, and how its output becomes boxes.
// The rules are those of detect.py, so that both find the same boxes. Nothing here touches the page.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

const GREY = 114 / 255; // padding of the letterbox
const DYNAMIC_SIDE = 640; // longest side of the input of a model whose sides are dynamic
const MAX_DETECTIONS = 1000;

export class Detector {
  /** Open a model from the bytes of its file. */
  static async open(bytes) {
    const metadata = readMetadata(bytes);
    return new Detector(await ort.InferenceSession.create(bytes), metadata);
  }

  constructor(session, metadata) {
    this.session = session;
    this.stride = Number.parseInt(metadata.stride) || 32;
    this.names = parseNames(metadata.names ?? "");
    this.layout = metadata.layout ?? "yolov5";
    if (this.layout === "raw") {
      throw new Error("this model gives raw levels: export it with --layout yolov5, yolov8 or --nms");
    }
    const shape = session.inputMetadata[0].shape;
    const sides = shape.slice(2).map((side) => (Number.isInteger(side) && side > 0 ? side : null));
    this.isDynamic = sides.includes(null);
    this.size = this.isDynamic ? [DYNAMIC_SIDE, DYNAMIC_SIDE] : sides; // height, width
  }

  /** Return the objects in an ImageData, highest score first: {x1, y1, x2, y2, score, class, label} in its pixels. */
  async detect(image, { confidence = 0.25, iou = 0.45 } = {}) {
    const box = letterbox(image, this.size, this.isDynamic ? this.stride : 0);
    const input = new ort.Tensor("float32", box.data, [1, 3, box.height, box.width]);
    const outputs = await this.session.run({ [this.session.inputNames[0]]: input });
    const output = outputs[this.session.outputNames[0]];
    const candidates = readOutput(output.data, output.dims, this.layout, confidence);
    const kept = this.layout === "nms" ? candidates : suppress(candidates, iou);
    return kept.map((found) => ({ ...found, ...box.undo(found), label: this.label(found.class) }));
  }

  label(number) {
    return this.names[number] ?? String(number);
  }
}

/** Return the metadata of an ONNX file, a protocol buffer: texts by key, which are field 14 of its outermost message. */
export function readMetadata(bytes) {
  const metadata = {};
  for (const [number, content] of fields(bytes)) {
    if (number !== 14) continue;
    const entry = {};
    for (const [part, text] of fields(content)) entry[part] = new TextDecoder().decode(text);
    metadata[entry[1]] = entry[2] ?? "";
  }
  return metadata;
}

/** Yield number and bytes of the fields of a message that hold bytes. */
function* fields(bytes) {
  let place = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; place < bytes.length; factor *= 128) {
      const byte = bytes[place++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw new Error("this is no ONNX file");
  };
  while (place < bytes.length) {
    const key = varint();
    const wire = key % 8;
    if (wire === 0) varint();
    else if (wire === 1) place += 8;
    else if (wire === 5) place += 4;
    else if (wire === 2) {
      const size = varint();
      yield [Math.floor(key / 8), bytes.subarray(place, place + size)];
      place += size;
    } else throw new Error("this is no ONNX file");
  }
}

/** Return the class names of the text of a Python dict, such as {0: 'cat', 1: "a dog's"}. */
export function parseNames(text) {
  const names = {};
  for (const [, number, single, double] of text.matchAll(/(\d+)['"]?\s*:\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")/g)) {
    names[number] = (single ?? double).replace(/\\(.)/g, "$1");
  }
  return names;
}

/**
 * Fit an ImageData into height x width at equal aspect and pad it with grey, both sides alike.
 * With a stride, pad only to its next multiple. Returns planes of RGB in 0...1, and `undo` for boxes.
 */
export function letterbox(image, [height, width], stride) {
  const ratio = Math.min(height / image.height, width / image.width);
  const inner = [image.height, image.width].map((side) => Math.max(1, roundHalfToEven(side * ratio)));
  const padding = [height - inner[0], width - inner[1]].map((pad) => (stride ? pad % stride : pad));
  const [top, left] = padding.map((pad) => Math.floor(pad / 2));
  const [rows, columns] = [inner[0] + padding[0], inner[1] + padding[1]];
  const data = resize(image, inner, [rows, columns], [top, left]);
  const gain = [inner[0] / image.height, inner[1] / image.width];
  const x = (value) => Math.min(Math.max((value - left) / gain[1], 0), image.width);
  const y = (value) => Math.min(Math.max((value - top) / gain[0], 0), image.height);
  const undo = ({ x1, y1, x2, y2 }) => ({ x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) });
  return { data, height: rows, width: columns, undo };
}

/** Return planes (3, rows, columns) in 0...1, grey but for the image, resized to `inner` at (top, left). */
function resize(image, inner, [rows, columns], [top, left]) {
  const planes = new Float32Array(3 * rows * columns).fill(GREY);
  const [ys, xs] = [samples(image.height, inner[0]), samples(image.width, inner[1])];
  ys.forEach(([y0, y1, down], row) => {
    xs.forEach(([x0, x1, right], column) => {
      const target = (top + row) * columns + left + column;
      for (let channel = 0; channel < 3; channel++) {
        const at = (y, x) => image.data[4 * (y * image.width + x) + channel];
        const upper = at(y0, x0) * (1 - right) + at(y0, x1) * right;
        const lower = at(y1, x0) * (1 - right) + at(y1, x1) * right;
        planes[channel * rows * columns + target] = Math.round(upper * (1 - down) + lower * down) / 255;
      }
    });
  });
  return planes;
}

/** Return [lower pixel, upper pixel, share of the upper one] for each pixel of a side that is resized. */
function samples(from, to) {
  return Array.from({ length: to }, (_, position) => {
    const place = Math.min(Math.max(((position + 0.5) * from) / to - 0.5, 0), from - 1);
    const lower = Math.floor(place);
    return [lower, Math.min(lower + 1, from - 1), place - lower];
  });
}

function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** Return the candidates above a confidence: {x1, y1, x2, y2, score, class} in pixels of the input. */
export function readOutput(data, dims, layout, confidence) {
  const across = layout === "yolov8"; // (1, 4+C, N); all others are (1, N, ...)
  const [count, width] = across ? [dims[2], dims[1]] : [dims[1], dims[2]];
  const value = across ? (row, column) => data[column * count + row] : (row, column) => data[row * width + column];
  const candidates = [];
  for (let row = 0; row < count; row++) {
    const found = layout === "nms" || layout === "deepstream" ? readCorners(value, row) : readRow(value, row, width, across);
    if (found.score > confidence) candidates.push(found);
  }
  return candidates.sort((one, other) => other.score - one.score);
}

/** Read a row x1, y1, x2, y2, score, class. */
function readCorners(value, row) {
  const [x1, y1, x2, y2, score, number] = [0, 1, 2, 3, 4, 5].map((column) => value(row, column));
  return { x1, y1, x2, y2, score, class: number };
}

/** Read a row center x, center y, width, height, objectness (absent in yolov8), a probability for each class. */
function readRow(value, row, width, across) {
  const first = across ? 4 : 5;
  let best = first;
  for (let column = first + 1; column < width; column++) {
    if (value(row, column) > value(row, best)) best = column;
  }
  const score = value(row, best) * (across ? 1 : value(row, 4));
  const [x, y, w, h] = [0, 1, 2, 3].map((column) => value(row, column));
  return { x1: x - w / 2, y1: y - h / 2, x2: x + w / 2, y2: y + h / 2, score, class: best - first };
}

/** Drop each candidate that overlaps a better one of its class by more than `iou`. They are sorted by score. */
export function suppress(candidates, iou) {
  const kept = [];
  for (const one of candidates) {
    if (kept.length === MAX_DETECTIONS) break;
    if (!kept.some((other) => other.class === one.class && overlap(one, other) > iou)) kept.push(one);
  }
  return kept;
}

function overlap(one, other) {
  const width = Math.min(one.x2, other.x2) - Math.max(one.x1, other.x1);
  const height = Math.min(one.y2, other.y2) - Math.max(one.y1, other.y1);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  const area = (box) => (box.x2 - box.x1) * (box.y2 - box.y1);
  return shared / (area(one) + area(other) - shared);
}
