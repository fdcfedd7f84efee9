// The picture that is shown, the progress of the one in work, and the history of this tab.

const $ = (id) => document.getElementById(id);
const MOST = 100;

export class Results {
  /** `say` is called with each message for those who do not see the page. */
  constructor(say) {
    this.entries = [];
    this.shown = null;
    this._say = say;
    this._preview = null;
    this._follows = false;
    this._count = 0;
    $("clear").addEventListener("click", () => this._clear());
  }

  /** Begin a request of `count` pictures. */
  begin(count) {
    this._follows = true;
    this._pictures = count;
    this._began = performance.now();
    this._clock = setInterval(() => this._tick(), 1000);
    $("bar").removeAttribute("value");
    $("step").textContent = "Waiting for the server…";
    this._tick();
    $("progress").hidden = false;
    this._say("Drawing.");
  }

  /** End the request, and show the last picture in the place of a preview. */
  end() {
    clearInterval(this._clock);
    $("progress").hidden = true;
    this._dropPreview();
    this.show(this.shown);
  }

  /** Show how far the server is, by the comment of a step. */
  step(comment) {
    const found = /^picture (\d+) of (\d+), step (\d+) of (\d+)$/.exec(comment);
    if (!found) return;
    const [picture, pictures, step, steps] = found.slice(1).map(Number);
    $("bar").value = ((picture - 1) * steps + step) / (pictures * steps);
    const which = pictures > 1 ? `Picture ${picture} of ${pictures}, step` : "Step";
    $("step").textContent = `${which} ${step} of ${steps}`;
  }

  preview(blob, number) {
    this._say(`Preview ${number}.`);
    if (!this._follows) return;
    this._dropPreview();
    this._preview = URL.createObjectURL(blob);
    this._put(this._preview, "Preview of the picture in work");
    $("tools").hidden = true;
    $("caption").hidden = false;
    $("caption").textContent = `Preview ${number}`;
  }

  /** Add a finished picture: `{blob, values, images, mask}`. */
  add(entry) {
    this._count += 1;
    entry.number = this._count;
    entry.seconds = (performance.now() - this._began) / 1000;
    entry.url = URL.createObjectURL(entry.blob);
    this.entries.unshift(entry);
    for (const old of this.entries.splice(MOST)) URL.revokeObjectURL(old.url);
    this._began = performance.now();
    if (this._follows) this.show(entry);
    this._list();
    this._say(`Picture finished: ${facts(entry)}.`);
  }

  /** Show a picture of the history; null for none. */
  show(entry) {
    this.shown = entry;
    $("tools").hidden = $("caption").hidden = !entry;
    $("image").hidden = !entry;
    $("empty").hidden = Boolean(entry);
    if (!entry) return;
    this._put(entry.url, entry.values.prompt.slice(0, 500));
    $("caption").textContent = facts(entry);
    $("save").href = entry.url;
    $("save").download = fileName(entry);
    this._list();
  }

  _put(url, alt) {
    $("image").src = url;
    $("image").alt = alt;
    $("image").hidden = false;
    $("empty").hidden = true;
  }

  _dropPreview() {
    if (this._preview) URL.revokeObjectURL(this._preview);
    this._preview = null;
  }

  _tick() {
    $("seconds").textContent = `${Math.round((performance.now() - this._began) / 1000)} s`;
  }

  _list() {
    $("history-part").hidden = !this.entries.length;
    const focused = document.activeElement?.closest("#history li")?.dataset.number;
    $("history").replaceChildren(...this.entries.map((entry) => this._item(entry)));
    if (focused) document.querySelector(`#history li[data-number="${focused}"] button`)?.focus();
  }

  _item(entry) {
    const item = document.createElement("li");
    item.dataset.number = entry.number;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "thumb board";
    button.setAttribute("aria-label", `Picture ${entry.number}: ${entry.values.prompt.slice(0, 200)}, ${facts(entry)}`);
    button.title = entry.values.prompt.slice(0, 200);
    if (entry === this.shown) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      this._follows = false;
      this.show(entry);
    });
    const image = new Image();
    image.src = entry.url;
    image.alt = "";
    button.append(image);
    item.append(button);
    return item;
  }

  _clear() {
    for (const entry of this.entries) URL.revokeObjectURL(entry.url);
    this.entries = [];
    this.show(null);
    this._list();
    $("prompt").focus();
    this._say("History cleared.");
  }
}

export function fileName(entry) {
  return `qwen-image-${entry.values.seed}.${entry.blob.type.split("/")[1]}`;
}

function facts({ values, seconds }) {
  const steps = values.num_inference_steps ? ` · ${values.num_inference_steps} steps` : "";
  return `${values.size.replace("x", " × ")} · seed ${values.seed}${steps} · ${seconds.toFixed(1)} s`;
}
