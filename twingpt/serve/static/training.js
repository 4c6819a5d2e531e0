// A run as it trains: its state, curves and the texts it wrote, read from metrics.jsonl as that grows.

import { get } from "./api.js";
import { element, readable } from "./dom.js";
import { Chart } from "./charts.js";
import { number, onLanguage, significant, t } from "./i18n.js";

const POLL = 2000;
const GIB = 2 ** -30;
const MARK = /\[\/?(?:BOS|EOS|PAD|UNK|QUESTION|DOC|ANSWER|SUMMARY)\]/g;

const $ = (id) => document.getElementById(id);
const rows = new Map();
let place = { file: "", offset: 0 };
let info = null;
let charts = [];
let shownSample = null;

export function startTraining() {
  const parent = $("charts");
  charts = [
    new Chart(parent, {
      title: "chart.loss",
      tall: true,
      log: true,
      value: (v) => number(v, 3),
      series: [
        { key: "loss", label: "chart.loss.train", colour: "--s1" },
        { key: "val_loss", label: "chart.loss.val", colour: "--s2", width: 2.25, points: true },
      ],
    }),
    new Chart(parent, {
      title: "chart.rate",
      value: (v) => number(v),
      series: [{ key: "tokens_per_second", label: "chart.rate", colour: "--s1" }],
    }),
    new Chart(parent, {
      title: "chart.lr",
      value: (v) => significant(v),
      series: [{ key: "lr", label: "chart.lr", colour: "--s1" }],
    }),
    new Chart(parent, {
      title: "chart.memory",
      value: (v) => number(v, 2),
      scale: GIB,
      series: [{ key: "memory", label: "chart.memory", colour: "--s1" }],
    }),
    new Chart(parent, {
      title: "chart.norm",
      value: (v) => number(v, 2),
      series: [{ key: "grad_norm", label: "chart.norm", colour: "--s1" }],
    }),
  ];
  onLanguage(show);
  poll();
}

export function describeRun(described) {
  info = described;
  show();
}

async function poll() {
  try {
    // A hidden page goes on more slowly, a lost server is asked again just as calmly.
    if (!document.hidden) await read();
  } catch {
    $("run-state").dataset.state = "lost";
    $("run-state").textContent = t("error.lost");
  }
  setTimeout(poll, POLL);
}

async function read() {
  let changed = false;
  for (let more = true; more; ) {
    const query = new URLSearchParams(place);
    const chunk = await get(`/api/metrics?${query}`);
    if (chunk.restart) rows.clear();
    for (const line of chunk.lines) rows.set(line.step, { ...rows.get(line.step), ...line });
    changed ||= chunk.restart || chunk.lines.length > 0;
    place = { file: chunk.file, offset: chunk.offset };
    more = chunk.more;
  }
  if (changed) showCurves();
  show();
}

function ordered() {
  return [...rows.values()].sort((a, b) => a.step - b.step);
}

function last(list, key) {
  return list.findLast((row) => Number.isFinite(row[key]));
}

function showCurves() {
  const list = ordered();
  for (const chart of charts) chart.show(list);
  showSamples(list);
}

function state(list) {
  if (info.process) return info.process;
  if (!list.length) return "none";
  return info.train.steps && list.at(-1).step >= info.train.steps ? "finished" : "stopped";
}

function show() {
  if (!info) return;
  const list = ordered();
  const now = state(list);
  $("run-state").dataset.state = now;
  $("run-state").textContent = t(`state.${now}`);
  $("live-dot").hidden = now !== "running";
  $("no-metrics").hidden = list.length > 0;
  $("no-metrics").textContent = t(now === "running" ? "training.soon" : "training.none");
  const step = list.at(-1)?.step ?? 0;
  const steps = info.train.steps;
  $("run-progress").hidden = !steps;
  $("run-progress").value = steps ? Math.min(1, step / steps) : 0;
  $("run-steps").textContent = steps ? t("training.steps", { step: number(step), steps: number(steps) }) : "";
  showLoaded();
  showStats(list, now);
}

/** h:mm:ss, as the terminal writes it. */
function duration(seconds) {
  const all = Math.round(seconds);
  const two = (value) => String(Math.floor(value) % 60).padStart(2, "0");
  return `${Math.floor(all / 3600)}:${two(all / 60)}:${two(all)}`;
}

function showLoaded() {
  const loaded = info.loaded_step;
  const text = loaded === null ? t("loaded.none") : t("loaded.step", { step: number(loaded) });
  $("loaded").textContent = info.problem ? `${text} · ${info.problem}` : text;
}

function showStats(list, now) {
  const loss = last(list, "loss");
  const val = last(list, "val_loss");
  const memory = last(list, "memory");
  const losses = list.filter((row) => Number.isFinite(row.val_loss));
  const best = losses.length ? losses.reduce((a, b) => (b.val_loss < a.val_loss ? b : a)) : null;
  const skipped = list.reduce((sum, row) => sum + (row.skipped ?? 0), 0);
  const stats = [
    ["stat.loss", loss && number(loss.loss, 4), skipped ? t("stat.skipped", { n: skipped }) : ""],
    [
      "stat.val",
      val && number(val.val_loss, 4),
      best && t("stat.best", { value: number(best.val_loss, 4), step: number(best.step) }),
    ],
    ["stat.bits", val && number(val.bits_per_byte, 4), ""],
    ["stat.rate", loss && number(loss.tokens_per_second), ""],
    ["stat.left", now === "running" && Number.isFinite(loss?.seconds_left) && duration(loss.seconds_left), ""],
    ["stat.lr", loss && significant(loss.lr), ""],
    ["stat.memory", memory && `${number(memory.memory * GIB, 2)} GiB`, ""],
  ];
  $("stats").replaceChildren(
    ...stats
      .filter(([, value]) => value)
      .map(([key, value, note]) => {
        const card = element("div", "", "card");
        const shown = element("dd", value);
        if (note) shown.append(element("small", note));
        card.append(element("dt", t(key)), shown);
        return card;
      }),
  );
}

function showSamples(list) {
  const samples = list.filter((row) => row.sample?.trim());
  $("samples").hidden = samples.length === 0;
  if (!samples.length) return;
  const newest = samples.at(-1);
  // Whoever looks at the newest sees the next one come; whoever chose an older one keeps it.
  const chosen = samples.find((row) => row.step === shownSample) ?? newest;
  $("sample-steps").replaceChildren(
    ...samples.toReversed().map((row) => {
      const button = element("button", number(row.step), "chip");
      button.setAttribute("aria-pressed", row === chosen);
      button.addEventListener("click", () => {
        shownSample = row === newest ? null : row.step;
        showSamples(ordered());
      });
      return button;
    }),
  );
  const article = $("sample");
  article.lang = "ko";
  article.replaceChildren(...withMarks(readable(chosen.sample.trim())));
}

function withMarks(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(MARK)) {
    nodes.push(text.slice(at, match.index), element("span", match[0].slice(1, -1), "token"));
    at = match.index + match[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}
