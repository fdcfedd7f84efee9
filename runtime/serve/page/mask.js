// The painting of a mask over the first reference image, by pointer or by numbers.

import { percent } from "./images.js";
import { Refusal } from "./server.js";

const $ = (id) => document.getElementById(id);
const COLOUR = "#2563c9";
const THUMB = 96;

/** The dialog. What is painted is a list of strokes, so that it can be undone and painted again. */
export class MaskDialog {
  constructor() {
    this._canvas = $("canvas");
    this._strokes = [];
    this._current = null;
    this._canvas.addEventListener("pointerdown", (event) => this._down(event));
    this._canvas.addEventListener("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) this._canvas.addEventListener(name, () => this._up());
    $("mask-undo").addEventListener("click", () => {
      this._strokes.pop();
      this._paintAll();
    });
    $("mask-invert").addEventListener("click", () => this._add({ kind: "invert" }));
    $("mask-clear").addEventListener("click", () => this._add({ kind: "clear" }));
    $("rect-fill").addEventListener("click", () => this._rectangle());
    $("mask-save").addEventListener("click", () => this._save());
    $("mask-done").addEventListener("click", () => $("mask").close());
  }

  /** Show the dialog until it is closed. Return the mask of `image`, or null if nothing is painted.
   *  Throw a `Refusal` if the image has more pixels than this browser paints on. */
  async open(image, before) {
    [this._canvas.width, this._canvas.height] = [image.width, image.height];
    this._context.fillRect(0, 0, 1, 1); // on too large a canvas this does nothing, and tells nothing
    if (!this._context.getImageData(0, 0, 1, 1).data[3]) {
      throw new Refusal(`${image.name} is too large to paint on in this browser. Scale it down.`);
    }
    $("mask-image").src = image.url;
    const sides = { left: 0, top: 0, width: image.width, height: image.height };
    for (const [name, side] of Object.entries(sides)) {
      $(`rect-${name}`).value = side;
      $(`rect-${name}`).max = side || { left: image.width, top: image.height }[name];
    }
    // The frame has the image's shape, as large as there is room.
    $("canvas-frame").style.setProperty("--shape", image.width / image.height);
    this._strokes = before ? [...before.strokes] : [];
    this._paintAll();
    $("mask").showModal();
    await new Promise((resolve) => $("mask").addEventListener("close", resolve, { once: true }));
    this._up();
    const share = this._share();
    if (!share) return null;
    return { of: image, blob: await this._png(), share, thumb: this._thumb(), strokes: this._strokes };
  }

  get _context() {
    return this._canvas.getContext("2d", { willReadFrequently: true });
  }

  _down(event) {
    if (event.button !== 0 || this._current) return;
    this._canvas.setPointerCapture(event.pointerId);
    const longest = Math.max(this._canvas.width, this._canvas.height);
    this._current = {
      kind: "stroke",
      pointer: event.pointerId,
      erases: this._erases,
      width: Math.max(1, (longest * $("brush-width").valueAsNumber) / 100),
      points: [this._point(event)],
    };
    this._paint({ ...this._current, points: [this._current.points[0]] });
    event.preventDefault();
  }

  _move(event) {
    if (this._current?.pointer !== event.pointerId) return;
    const met = event.getCoalescedEvents?.() ?? [];
    const points = (met.length ? met : [event]).map((each) => this._point(each));
    this._paint({ ...this._current, points: [this._current.points.at(-1), ...points] });
    this._current.points.push(...points);
  }

  _up() {
    if (!this._current) return;
    this._strokes.push(this._current);
    this._current = null;
    this._tell();
  }

  get _erases() {
    return document.querySelector("input[name=brush]:checked").value === "erase";
  }

  _point(event) {
    const box = this._canvas.getBoundingClientRect();
    const { width, height } = this._canvas;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  _rectangle() {
    const [left, top, width, height] = ["left", "top", "width", "height"].map((name) => $(`rect-${name}`).valueAsNumber);
    if (![left, top, width, height].every(Number.isFinite)) {
      $("share").textContent = "The rectangle needs four numbers.";
      return;
    }
    this._add({ kind: "rectangle", erases: this._erases, box: [left, top, width, height] });
  }

  _add(stroke) {
    this._strokes.push(stroke);
    this._paint(stroke);
    this._tell();
  }

  _paintAll() {
    this._paint({ kind: "clear" });
    for (const stroke of this._strokes) this._paint(stroke);
    this._tell();
  }

  _paint({ kind, erases, width, points, box }) {
    const context = this._context;
    const whole = [0, 0, this._canvas.width, this._canvas.height];
    context.save();
    context.fillStyle = context.strokeStyle = COLOUR;
    if (erases) context.globalCompositeOperation = "destination-out";
    if (kind === "clear") context.clearRect(...whole);
    if (kind === "rectangle") context.fillRect(...box);
    if (kind === "invert") {
      context.globalCompositeOperation = "source-out"; // colour where there is none, and none where there is
      context.fillRect(...whole);
    }
    if (kind === "stroke") {
      Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
      context.stroke();
    }
    context.restore();
  }

  _tell() {
    $("mask-undo").disabled = !this._strokes.length;
    const share = this._share();
    $("share").textContent = share ? `${percent(share)} of the image is painted.` : "Nothing is painted.";
  }

  get _pixels() {
    return this._context.getImageData(0, 0, this._canvas.width, this._canvas.height);
  }

  _share() {
    const { data } = this._pixels;
    let painted = 0;
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) painted += 1;
    return painted / (data.length / 4);
  }

  /** The mask as the API has it: alpha 0 where painted, else 255, without the soft edge of a stroke. */
  async _png() {
    const pixels = this._pixels;
    for (let at = 3; at < pixels.data.length; at += 4) {
      const painted = pixels.data[at] >= 128;
      pixels.data.fill(0, at - 3, at);
      pixels.data[at] = painted ? 0 : 255;
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [pixels.width, pixels.height];
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  _thumb() {
    const canvas = document.createElement("canvas");
    const scale = THUMB / Math.max(this._canvas.width, this._canvas.height);
    canvas.width = Math.max(1, Math.round(this._canvas.width * scale));
    canvas.height = Math.max(1, Math.round(this._canvas.height * scale));
    canvas.getContext("2d").drawImage(this._canvas, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  async _save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await this._png());
    link.download = "mask.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}
