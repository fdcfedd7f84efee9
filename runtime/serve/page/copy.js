// The parameters of a picture as text to copy.

/** Return the parameters as JSON; files are named. */
export function asJson({ values, images, mask }) {
  const files = images.length ? { image: images.map((image) => image.name) } : {};
  return JSON.stringify({ ...values, ...files, ...(mask ? { mask: "mask.png" } : {}) }, null, 2);
}

/** Return a command that draws the picture again. The key, if there is one, comes from a variable. */
export function asCurl({ values, images, mask }, keyed) {
  const lines = [`curl -s ${location.origin}/v1/images/${images.length ? "edits" : "generations"}`];
  if (keyed) lines.push('-H "Authorization: Bearer $QWEN_IMAGE_API_KEY"');
  if (images.length) {
    for (const [name, value] of Object.entries(values)) lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    for (const image of images) lines.push(`-F ${quoted(`image[]=@${file(image.name)}`)}`);
    if (mask) lines.push("-F mask=@mask.png");
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(values))}`);
  }
  return `${lines.join(" \\\n  ")} \\\n  | jq -r '.data[0].b64_json' | base64 --decode > picture.png\n`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A file's name as curl's -F reads it: in double quotes, in which a backslash escapes. */
function file(name) {
  return `"${name.replace(/[\\"]/g, "\\$&")}"`;
}

/** Put a text on the clipboard. Return whether that was possible; it is not over plain HTTP from another machine. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
