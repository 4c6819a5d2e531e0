// Talking to the server: the key, errors in one form, and server-sent events.

import { errorText, t } from "./i18n.js";

const KEY = "twingpt.key";

let askForKey = null;

/** ask: shows the key dialog and resolves to what was typed; wrong: whether a key was refused. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Its message is in the page's language. */
export class ApiError extends Error {}

async function request(path, options = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(t("error.network"));
    }
    if (response.status === 401 && askForKey) {
      sessionStorage.setItem(KEY, await askForKey(Boolean(key)));
      continue;
    }
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new ApiError(errorText(body?.error?.code ?? response.status, body?.error?.message));
    }
    return response;
  }
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body = {}) {
  return (await request(path, json(body))).json();
}

/** The data of each server-sent event of a POST, parsed; ends at [DONE]. */
export async function* events(path, body, signal) {
  const response = await request(path, { ...json(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      for (let end; (end = buffer.indexOf("\n\n")) >= 0; ) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end + 2);
        if (!event.startsWith("data: ")) continue;
        const data = event.slice(6);
        if (data === "[DONE]") return;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new ApiError(errorText(parsed.error.code, parsed.error.message));
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function json(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}
