// Requests to this server, and the events of a stream while they come.

const KEY = "qwen-image-key";

/** An error in words. `status` is the reply's, 0 if there was none; `param` names the field at fault. */
export class Refusal extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

/** Return the reply to a request, or throw a `Refusal`. An abort throws its own error. */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    throw broken(error);
  }
  if (reply.ok) return reply;
  const found = (await reply.json().catch(() => ({}))).error;
  throw new Refusal(sentence(found?.message ?? `The server answered ${reply.status}.`), reply.status, found?.param);
}

/** Yield the events of a stream: `{comment}`, or what the server wrote as data. */
export async function* events(path, options) {
  const reply = await ask(path, options);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      if (!value.includes("\n")) continue; // a picture has megabytes in one line, which are not searched for each part
      for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) yield event(rest.slice(0, end));
    }
  } catch (error) {
    throw broken(error);
  } finally {
    reader.cancel().catch(() => {}); // the connection, if the reader of these events has stopped
  }
}

function event(text) {
  if (text.startsWith(":")) return { comment: text.slice(1).trim() };
  const data = text.split("\n").filter((line) => line.startsWith("data:"));
  const found = JSON.parse(data.map((line) => line.slice(5)).join("\n"));
  if (found.type === "error") throw new Refusal(sentence(found.error.message), 200, found.error.param);
  return found;
}

function broken(error) {
  if (error instanceof Refusal || error.name === "AbortError") return error;
  return new Refusal("The server does not answer, or has ended the connection. Is it still running?");
}

function sentence(text) {
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}

/** Return a request's options: JSON without files, else a form with the files `[field, file, name]`. */
export function body(fields, files) {
  if (!files.length) {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) };
  }
  // By hand: FormData writes each line feed of a prompt as two characters, which draws another picture.
  const mark = `qwen-image-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  const parts = [];
  for (const [name, value] of Object.entries(fields)) {
    parts.push(`--${mark}\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`);
  }
  for (const [field, file, name] of files) {
    const quoted = name.replace(/["\r\n]/g, encodeURIComponent);
    const head = `Content-Disposition: form-data; name="${field}"; filename="${quoted}"`;
    parts.push(`--${mark}\r\n${head}\r\nContent-Type: ${file.type || "application/octet-stream"}\r\n\r\n`, file, "\r\n");
  }
  parts.push(`--${mark}--\r\n`);
  const type = `multipart/form-data; boundary=${mark}`;
  return { method: "POST", headers: { "Content-Type": type }, body: new Blob(parts) };
}
