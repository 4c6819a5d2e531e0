// The conversation: a question goes out, the answer comes in piece by piece, and its numbers are verified or marked.

import { events } from "./api.js";
import { element, readable } from "./dom.js";
import { grounded } from "./grounded.js";
import { number, onLanguage, t } from "./i18n.js";

// A small model goes astray at the first unlikely word: it starts out careful.
const DEFAULTS = { temperature: 0.3, "top-p": 0.9, "max-tokens": 400 };

const $ = (id) => document.getElementById(id);
let info = null;
let running = null;
let tab = "ask";

export function startAsk() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else submit();
  });
  $("question").addEventListener("keydown", onKey);
  $("question").addEventListener("input", grow);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
  });
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", show);
  for (const id of Object.keys(DEFAULTS)) $(id).addEventListener("input", () => showSetting(id));
  $("reset").addEventListener("click", reset);
  $("settings").open = matchMedia("(min-width: 960px)").matches;
  reset();
  onLanguage(show);
}

function reset() {
  for (const [id, value] of Object.entries(DEFAULTS)) $(id).value = value;
  $("seed").value = "";
  $("form-choice").checked = false;
  show();
}

/** Whether an answer is under way. */
export function answering() {
  return running !== null;
}

/** name: "ask", answers from the text; or "free", what the model writes. Each keeps a conversation of its own. */
export function showTab(name) {
  tab = name;
  show();
}

/** What /api/run says; called again whenever it changes. */
export function describeModel(described) {
  info = described;
  $("max-tokens").max = info.max_tokens;
  const plain = info.template === "plain";
  document.querySelector("input[name=mode][value=answer]").disabled = plain;
  if (plain) document.querySelector("input[name=mode][value=write]").checked = true;
  document.querySelector("input[name=contacts][value=fill]").disabled = !info.contacts;
  show();
}

/** "find": answer from the text. "answer": as the model answers. "write": as it writes on. */
function mode() {
  return tab === "ask" ? "find" : document.querySelector("input[name=mode]:checked").value;
}

/** Answers from the text need no model. */
function usable() {
  return info !== null && (tab === "ask" ? info.library : info.loaded_step !== null);
}

function show() {
  const free = tab === "free";
  for (const name of ["ask", "free"]) $(`thread-${name}`).hidden = name !== tab;
  $("welcome").hidden = $(`thread-${tab}`).childElementCount > 0;
  $("welcome-title").textContent = t(`welcome.${tab}`);
  $("welcome-note").textContent = t(`welcome.${tab}.note`);
  $("question").placeholder = t(mode() === "write" ? "write.placeholder" : "ask.placeholder");
  $("document-box").hidden = $("form-field").hidden = mode() === "write";
  $("modes").hidden = $("aside").hidden = !free;
  for (const id of Object.keys(DEFAULTS)) showSetting(id);
  if (!info) return;
  const waits = free && info.loaded_step === null;
  const hint = waits ? "ask.no_checkpoint" : free && info.template === "plain" ? "mode.plain" : "ask.hint";
  $("send").disabled = !running && !usable();
  $("hint").className = hint === "ask.hint" ? "hint enter" : "hint";
  $("hint").textContent = t(hint);
  const examples = mode() === "write" || waits ? [] : info.questions;
  if ($("examples").textContent !== examples.join("")) $("examples").replaceChildren(...examples.map(chip));
  $("contacts-note").textContent = t(info.contacts ? "contacts.store" : "contacts.nostore");
  const facts = {
    "facts.model": info.name,
    "facts.size": info.spec && t("facts.size.value", { layers: info.spec.n_layer, width: info.spec.n_embd, parameters: number(info.parameters) }),
    "facts.context": info.spec && t("facts.context.value", { n: number(info.spec.block_size) }),
    "facts.step": info.loaded_step === null ? t("facts.step.none") : number(info.loaded_step),
    "facts.engine": info.backend && `${info.backend} · ${info.device}`,
    "facts.load": t("facts.load.value", info),
  };
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value).map(([key, value]) => fact(t(key), value)));
}

function fact(name, value) {
  const row = element("div", "", "between");
  row.append(element("dt", name), element("dd", value));
  return row;
}

function chip(text) {
  const button = element("button", text, "chip");
  button.lang = "ko";
  button.addEventListener("click", () => ask(text));
  return button;
}

function ask(text) {
  if (running) return;
  $("question").value = text;
  submit();
}

function showSetting(id) {
  const value = Number($(id).value);
  document.querySelector(`output[for=${id}]`).textContent = id === "max-tokens" ? number(value) : number(value, 2);
}

function onKey(event) {
  // While Hangul is being composed, Enter ends the syllable and not the question.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  if (!running) submit();
}

function grow() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, 220)}px`;
}

function submit() {
  const text = $("question").value.trim();
  if (!text || !usable()) return;
  const asked = { mode: mode(), text, document: $("document").value.trim() };
  $("question").value = "";
  grow();
  answer(asked);
}

function requestFor({ mode, text, document: doc }) {
  const messages = [{ role: "user", content: text }];
  if (mode === "find") {
    const found = { model: info.name, messages, stream: true };
    return ["/v1/chat/completions", doc ? { ...found, document: doc } : found];
  }
  const body = {
    temperature: Number($("temperature").value),
    top_p: Number($("top-p").value),
    max_tokens: Number($("max-tokens").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  body[document.querySelector("input[name=contacts]:checked").value + "_contacts"] = true;
  if (mode === "write") return ["/v1/completions", { ...body, prompt: text }];
  if (doc) body.document = doc;
  if ($("form-choice").checked) body.format = "answer";
  return ["/v1/chat/completions", { ...body, model: `${info.name}:free`, messages }];
}

async function answer(asked) {
  const entry = newEntry(asked);
  const [path, body] = requestFor(asked);
  running = new AbortController();
  document.body.classList.add("answering");
  const following = follower();
  const said = { text: asked.mode === "write" ? asked.text : "", tokens: 0, started: 0, finish: null, extra: null };
  const given = said.text.length;
  try {
    for await (const event of events(path, body, running.signal)) {
      const choice = event.choices?.[0];
      const piece = choice?.delta?.content ?? choice?.text ?? "";
      if (piece && !said.started) {
        said.started = performance.now();
        entry.status.remove();
      }
      if (piece) {
        said.text += piece;
        entry.text.append(readable(piece));
      }
      if (choice?.finish_reason) said.finish = choice.finish_reason;
      if (event.twingpt) said.extra = { ...said.extra, ...event.twingpt };
      if (event.usage) said.tokens = event.usage.completion_tokens;
      following();
    }
    if (said.text.length === given) entry.body.append(element("p", t("answer.empty"), "aside"));
    $("announce").textContent = t("answer.done");
  } catch (error) {
    const stopped = error.name === "AbortError";
    entry.body.append(element("p", stopped ? t("answer.stopped") : error.message, stopped ? "aside" : "error aside"));
    $("announce").textContent = stopped ? t("answer.stopped") : error.message;
  }
  running = null;
  document.body.classList.remove("answering");
  show();
  finish(entry, asked, said, given);
  following();
}

function newEntry(asked) {
  $("welcome").hidden = true;
  const entry = element("article", "", "entry");
  const question = element("h2", asked.text, "asked");
  if (asked.mode !== "write" && asked.document) question.append(element("p", asked.document, "given soft small"));
  const body = element("div", "", "answer live");
  if (asked.mode !== "find") body.append(element("p", t("answer.free"), "soft small"));
  const text = element("div", asked.mode === "write" ? asked.text : "", "text");
  text.lang = "ko";
  const status = element("p", t("answer.waiting"), "aside waiting");
  body.setAttribute("aria-busy", "true");
  body.append(text, status);
  if (asked.mode !== "write") entry.append(question);
  entry.append(body);
  $(`thread-${tab}`).append(entry);
  show();
  entry.scrollIntoView({ block: "start" });
  return { entry, body, text, status };
}

function finish(entry, asked, said, given) {
  entry.body.classList.remove("live");
  entry.body.setAttribute("aria-busy", "false");
  entry.status.remove();
  const spans = said.extra?.contacts ?? [];
  if (said.extra?.sources) {
    entry.text.classList.add("grounded");
    entry.text.replaceChildren(...grounded(said.extra, ask));
  } else entry.text.replaceChildren(said.text.slice(0, given), ...marked(said.text.slice(given), spans));
  const meta = element("div", "", "meta soft small");
  const parts = [];
  if (said.tokens) {
    const seconds = (performance.now() - said.started) / 1000;
    const rate = said.tokens > 1 ? (said.tokens - 1) / Math.max(seconds, 0.001) : 0;
    parts.push(t("answer.meta", { tokens: number(said.tokens), rate: number(rate), seed: said.extra?.seed ?? "–" }));
  }
  if (said.finish === "length") parts.push(t("answer.length"));
  if (spans.length) {
    const good = spans.filter((span) => span.verified).length;
    parts.push(t("contacts.count", { good, bad: spans.length - good }));
  }
  if (parts.length) meta.append(element("span", parts.join(" · ")));
  const copy = element("button", t("answer.copy"), "quiet");
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(readable(said.text));
    copy.textContent = t("answer.copied");
  });
  const again = element("button", t("answer.again"), "quiet");
  again.addEventListener("click", () => running || answer(asked));
  meta.append(copy, again);
  entry.body.append(meta);
}

/** An answer as nodes: section heads stand out, numbers are marked. The server counts in code points. */
function marked(text, spans) {
  const points = [...text];
  const nodes = [];
  let at = 0;
  for (const span of [...spans, ...heads(points)].sort((a, b) => a.start - b.start)) {
    nodes.push(readable(points.slice(at, span.start).join("")));
    const found = points.slice(span.start, span.end).join("");
    nodes.push(span.head ? element("strong", found) : numberMark(found, span.verified));
    at = span.end;
  }
  nodes.push(readable(points.slice(at).join("")));
  return nodes;
}

function numberMark(text, verified) {
  const mark = element("mark", text, verified ? "good" : "bad");
  mark.title = t(verified ? "contacts.verified" : "contacts.unverified");
  mark.append(element("span", `(${mark.title})`, "unseen"));
  return mark;
}

/** Where the lines begin that open a section of the form the model was trained on. */
function heads(points) {
  const found = [];
  let start = 0;
  for (const line of points.join("").split("\n")) {
    const head = info.heads.find((one) => line.startsWith(one));
    if (head) found.push({ start, end: start + [...head].length, head: true });
    start += [...line].length + 1;
  }
  return found;
}

/** Keeps the end of the answer in sight, unless the reader has scrolled away from it. */
function follower() {
  return () => {
    const bottom = document.documentElement.scrollHeight - innerHeight - scrollY;
    if (bottom < 160) scrollTo({ top: document.documentElement.scrollHeight });
  };
}
