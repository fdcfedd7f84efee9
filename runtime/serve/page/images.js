// The reference images: a list of files that are chosen, dropped, pasted or taken from the history.

const $ = (id) => document.getElementById(id);

export class Images {
  /** `say` is called with each message, and whether it is an error. */
  constructor(say) {
    this.list = [];
    this.mask = null; // {of, blob, share, thumb, strokes} of the first image
    this.most = 10; // until the server has told its bound
    this._say = say;
  }

  /** Add files. Those that are no pictures are named in a message. */
  async add(files) {
    const faults = [];
    let added = 0;
    for (const file of files) {
      if (this.list.length >= this.most) {
        faults.push(`At most ${this.most} images can be given.`);
        break;
      }
      const url = URL.createObjectURL(file);
      const shown = new Image();
      shown.src = url;
      try {
        await shown.decode();
      } catch {
        URL.revokeObjectURL(url);
        faults.push(`${file.name} is no picture that this browser can show.`);
        continue;
      }
      const { naturalWidth: width, naturalHeight: height } = shown;
      this.list.push({ file, name: file.name, url, width, height });
      added += 1;
    }
    this.show();
    if (faults.length) this._say(faults.join(" "), true);
    else if (added) this._say(`${added === 1 ? "Image" : `${added} images`} added; ${this.list.length} in all.`);
  }

  /** Put the images of an earlier request in place of these. */
  replace(images, mask) {
    for (const image of this.list) URL.revokeObjectURL(image.url);
    this.list = images.map((image) => ({ ...image, url: URL.createObjectURL(image.file) }));
    this.mask = mask && { ...mask, of: this.list[0] };
    this.show();
  }

  show() {
    if (this.mask && this.mask.of !== this.list[0]) {
      this.mask = null;
      this._say("The mask was removed, because it belongs to another first image.");
    }
    $("images").replaceChildren(...this.list.map((image, index) => this._item(image, index)));
    $("images").hidden = !this.list.length;
    $("open-mask").hidden = !this.list.length;
    $("open-mask").textContent = this.mask ? "Change the mask…" : "Paint a mask…";
    $("choose").disabled = this.list.length >= this.most;
  }

  _item(image, index) {
    const item = document.createElement("li");
    const frame = document.createElement("div");
    frame.className = "thumb board";
    const picture = new Image();
    picture.src = image.url;
    picture.alt = "";
    frame.append(picture);
    if (index === 0 && this.mask) frame.append(this.mask.thumb);
    const name = document.createElement("p");
    name.className = "name";
    name.textContent = image.name;
    const facts = document.createElement("p");
    facts.className = "hint";
    const share = index === 0 && this.mask ? `, mask on ${percent(this.mask.share)}` : "";
    facts.textContent = `${image.width} × ${image.height}${share}`;
    const text = document.createElement("div");
    text.append(name, facts);
    item.append(frame, text);
    if (index > 0) item.append(this._button("↑", `Move ${image.name} before the one above`, () => this._earlier(index)));
    item.append(this._button("✕", `Remove ${image.name}`, () => this._remove(index)));
    return item;
  }

  _button(sign, label, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = sign;
    button.setAttribute("aria-label", label);
    button.title = label;
    button.addEventListener("click", act);
    return button;
  }

  _earlier(index) {
    const [image] = this.list.splice(index, 1);
    this.list.splice(index - 1, 0, image);
    this._say(`${image.name} is image ${index} now.`);
    this.show();
    $("images").children[index - 1].querySelector("button").focus();
  }

  _remove(index) {
    const [image] = this.list.splice(index, 1);
    URL.revokeObjectURL(image.url);
    this._say(`${image.name} removed.`);
    this.show();
    const next = $("images").children[Math.min(index, this.list.length - 1)];
    (next?.querySelector("button:last-child") ?? $("choose")).focus();
  }
}

export function percent(share) {
  return share > 0 && share < 0.01 ? "less than 1 %" : `${Math.round(share * 100)} %`;
}

/** Take files that are dropped or pasted anywhere on the page. */
export function takeFiles(add) {
  const withFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  let depth = 0; // dragenter and dragleave come for every element on the way
  const mark = () => document.body.classList.toggle("dropping", depth > 0);
  addEventListener("dragenter", (event) => {
    if (withFiles(event)) depth += 1;
    mark();
  });
  addEventListener("dragleave", (event) => {
    if (withFiles(event)) depth = Math.max(0, depth - 1);
    mark();
  });
  addEventListener("dragover", (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    mark();
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); // else the browser opens the file
    if (withFiles(event)) add([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length && !document.querySelector("dialog[open]")) add(files);
  });
}
