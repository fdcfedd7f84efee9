// The page: draws what the form asks for, and puts its parts together.

import { asCurl, asJson, toClipboard } from "./copy.js";
import * as form from "./form.js";
import { Images, takeFiles } from "./images.js";
import { MaskDialog } from "./mask.js";
import { fileName, Results } from "./results.js";
import { ask, body, events, hasKey, keepKey, Refusal } from "./server.js";

const $ = (id) => document.getElementById(id);
const on = (id, event, act) => $(id).addEventListener(event, act);

const results = new Results(say);
const images = new Images((text, fault) => (fault ? form.blame({ message: text }) : say(text)));
const masks = new MaskDialog();
let stop = null; // of the request in work
let masking = null; // the encoding of a mask, which takes a moment after its dialog

function say(text) {
  $("live").textContent = text;
}

function blob(event) {
  const text = atob(event.b64_json);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return new Blob([bytes], { type: `image/${event.output_format}` });
}

/** Draw what the form asks for, until all pictures are there, an error, or `stop`. */
async function draw() {
  if (stop) return;
  form.clear();
  const hadFocus = document.activeElement === $("draw");
  stop = new AbortController();
  try {
    await masking;
    const { partial_images, ...values } = form.read(images.list.length > 0);
    const entry = { images: [...images.list], mask: images.mask };
    busy(true, values.n ?? 1, hadFocus);
    await follow(values, partial_images ?? 0, entry);
  } catch (error) {
    if (stop.signal.aborted) say("Cancelled.");
    else fail(error);
  } finally {
    stop = null;
    busy(false);
  }
}

async function follow(values, previews, entry) {
  const files = entry.images.map((image) => ["image[]", image.file, image.name]);
  if (entry.mask) files.push(["mask", entry.mask.blob, "mask.png"]);
  const fields = { ...values, stream: true, partial_images: previews };
  const path = `/v1/images/${files.length ? "edits" : "generations"}`;
  let finished = 0;
  for await (const event of events(path, { ...body(fields, files), signal: stop.signal })) {
    if (event.comment) {
      results.step(event.comment);
    } else if (event.type.endsWith(".partial_image")) {
      results.preview(blob(event), event.partial_image_index + 1);
    } else if (event.type.endsWith(".completed")) {
      finished += 1;
      const drawn = { ...values, n: 1, seed: event.seed, size: event.size };
      results.add({ ...entry, blob: blob(event), values: drawn });
    }
  }
  if (finished < (values.n ?? 1)) throw new Refusal("The server ended the connection before the picture was finished.");
}

function busy(draws, count, hadFocus) {
  if (draws) {
    results.begin(count);
    $("draw").disabled = true;
    if (hadFocus) $("cancel").focus({ preventScroll: true });
    const { top } = $("stage").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) $("stage").scrollIntoView(); // on a phone it is below the form
  } else if ($("draw").disabled) {
    const focused = document.activeElement === $("cancel");
    $("draw").disabled = false;
    results.end();
    if (focused) $("draw").focus({ preventScroll: true });
  }
}

function fail(error) {
  if (!(error instanceof Refusal)) {
    form.blame(new Refusal("This page has a fault; the browser's console tells more."));
    throw error;
  }
  if (error.status === 401) {
    $("key-part").hidden = false;
    error.message = hasKey() ? "The API key is wrong." : "This server asks for an API key.";
  }
  form.blame(error);
}

/** Ask the server for its models, and for the fields of a request, which its OpenAPI document makes from its table. */
async function prepare() {
  try {
    const openapi = await (await ask("/openapi.json")).json();
    const edits = openapi.paths["/v1/images/edits"].post.requestBody.content["multipart/form-data"];
    const fields = edits.schema.properties;
    form.fill(fields);
    images.most = fields.image.maxItems;
    const { data } = await (await ask("/v1/models")).json();
    form.offer($("model"), data.map((model) => model.id));
  } catch (error) {
    fail(error);
  }
}

/** Copy a text, or show it where the browser keeps the clipboard from the page. */
async function copy(button, text) {
  if (await toClipboard(text)) {
    done(button, "Copied");
    return;
  }
  $("text").value = text;
  $("by-hand").showModal();
  $("text").select();
}

/** Let a button say for a moment that its work is done. */
function done(button, text) {
  button.dataset.label ??= button.textContent;
  button.textContent = text;
  say(`${text}.`);
  clearTimeout(button.clock);
  button.clock = setTimeout(() => (button.textContent = button.dataset.label), 1500);
}

on("form", "submit", (event) => {
  event.preventDefault();
  draw();
});
on("form", "keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
});
on("cancel", "click", () => stop?.abort());
on("size", "change", form.showSides);
on("choose", "click", () => $("files").click());
on("files", "change", async () => {
  form.clear();
  await images.add([...$("files").files]);
  $("files").value = "";
});
on("open-mask", "click", () => {
  form.clear();
  const painted = (mask) => {
    images.mask = mask;
    images.show();
  };
  masking = masks.open(images.list[0], images.mask).then(painted, fail);
});
on("key", "change", () => {
  keepKey($("key").value.trim());
  form.clear();
  prepare();
});
on("as-image", "click", async () => {
  const entry = results.shown;
  form.clear();
  await images.add([new File([entry.blob], fileName(entry), { type: entry.blob.type })]);
  if ($("fault").hidden) done($("as-image"), "Added");
});
on("settings", "click", () => {
  form.write(results.shown.values);
  images.replace(results.shown.images, results.shown.mask);
  done($("settings"), "In the form");
});
on("copy-json", "click", () => copy($("copy-json"), asJson(results.shown)));
on("copy-curl", "click", () => copy($("copy-curl"), asCurl(results.shown, hasKey())));
on("by-hand-done", "click", () => $("by-hand").close());
takeFiles((files) => {
  form.clear();
  images.add(files);
});
form.showSides();
prepare();
