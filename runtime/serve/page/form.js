// The fields of the form, whose ids are the API's names, as values of a request and back.

import { Refusal } from "./server.js";

const $ = (id) => document.getElementById(id);
const OF_EDITS = "reference_resolution";
const NUMBERS = ["num_inference_steps", "seed", "guidance_scale", "n", "partial_images", OF_EDITS];
const WORDS = ["negative_prompt", "solver", "model"];

/** Take choices and bounds from the schemas of the fields of edits, which are those of generations and more. */
export function fill(fields) {
  for (const name of NUMBERS) {
    if (name === "seed") continue; // beyond what a script holds exactly
    $(name).min = fields[name].minimum;
    $(name).max = fields[name].maximum;
  }
  $(OF_EDITS).placeholder = fields[OF_EDITS].default;
  offer($("solver"), fields.solver.enum, fields.solver.default);
}

export function offer(select, names, chosen = select.value) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

/** Return the values of the form by the API's names; what was left empty, or is of edits alone, is absent. */
export function read(edits) {
  const values = { prompt: $("prompt").value };
  for (const name of WORDS) if ($(name).value) values[name] = $(name).value;
  values.size = $("size").value;
  if (values.size === "other") values.size = `${$("width").value}x${$("height").value}`;
  for (const name of NUMBERS) {
    if (name === OF_EDITS && !edits) continue;
    const field = $(name);
    const label = field.labels[0].textContent;
    if (field.validity.badInput) throw new Refusal(`${label} is no number.`, 0, name);
    if (field.value === "") continue;
    values[name] = Number(field.value);
    if (name === "seed" && !Number.isSafeInteger(values.seed)) {
      throw new Refusal(`Seed: expected a whole number, at most ${Number.MAX_SAFE_INTEGER} on this page.`, 0, name);
    }
  }
  return values;
}

/** Put the values of a request into the form. */
export function write(values) {
  $("prompt").value = values.prompt;
  $("negative_prompt").value = values.negative_prompt ?? "";
  for (const name of ["solver", "model"]) if (values[name]) $(name).value = values[name];
  for (const name of NUMBERS) if (name !== "partial_images") $(name).value = values[name] ?? "";
  const listed = [...$("size").options].some((option) => option.value === values.size);
  $("size").value = listed ? values.size : "other";
  if (!listed) [$("width").value, $("height").value] = values.size.split("x");
  showSides();
}

export function showSides() {
  $("sides").hidden = $("size").value !== "other";
}

/** Show an error, and the field at fault with the focus on it. */
export function blame(error) {
  const box = $("fault");
  box.textContent = error.message;
  box.hidden = false;
  const field = { size: $("sides").hidden ? "size" : "width", image: "choose", mask: "open-mask" }[error.param];
  const found = $(error.status === 401 ? "key" : (field ?? error.param ?? ""));
  if (!found) {
    box.scrollIntoView({ block: "nearest" });
    return;
  }
  found.setAttribute("aria-invalid", "true");
  found.setAttribute("aria-errormessage", "fault");
  const folded = found.closest("details");
  if (folded) folded.open = true;
  found.focus();
}

/** Take the last error away. */
export function clear() {
  $("fault").hidden = true;
  $("fault").textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}
