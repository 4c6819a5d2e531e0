// A run as it trains: its state, curves and the texts it wrote, read from metrics.jsonl as that grows.

import { get, post } from "./api.js";
import { element } from "./dom.js";
import { Chart } from "./charts.js";
import { number, onLanguage, t } from "./i18n.js";

const POLL = 2000;
const QUIET = 60;
const GIB = 2 ** -30;
const MARK = /\[\/?(?:BOS|EOS|PAD|UNK|QUESTION|DOC|ANSWER|SUMMARY)\]/g;

const $ = (id) => document.getElementById(id);
const rows = new Map();
let place = { file: "", offset: 0 };
let age = null;
let info = null;
let charts = [];
let shownSample = null;

/** refresh: reads /api/run again. */
export function startTraining(refresh) {
  const parent = $("charts");
  charts = [
    new Chart(parent, {
      title: "chart.loss",
      tall: true,
      log: true,
      value: (v) => number(v, 3),
      series: [
        { key: "loss", label: "chart.loss.train", colour: "--pine" },
        { key: "val_loss", label: "chart.loss.val", colour: "--persimmon", width: 2.25, points: true },
      ],
    }),
    new Chart(parent, {
      title: "chart.rate",
      value: (v) => number(v),
      series: [{ key: "tokens_per_second", label: "chart.rate", colour: "--pine" }],
    }),
    new Chart(parent, {
      title: "chart.lr",
      value: (v) => v.toExponential(1),
      series: [{ key: "lr", label: "chart.lr", colour: "--pine" }],
    }),
    new Chart(parent, {
      title: "chart.memory",
      value: (v) => number(v, 2),
      scale: GIB,
      series: [{ key: "memory", label: "chart.memory", colour: "--pine" }],
    }),
    new Chart(parent, {
      title: "chart.norm",
      value: (v) => number(v, 2),
      series: [{ key: "grad_norm", label: "chart.norm", colour: "--pine" }],
    }),
  ];
  $("reload").addEventListener("click", async () => {
    const button = $("reload");
    button.disabled = true;
    button.textContent = t("reload.busy");
    try {
      await post("/api/reload");
      await refresh();
    } catch (error) {
      $("loaded").textContent = error.message;
    }
    button.disabled = false;
    button.textContent = t("reload.button");
  });
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
    age = chunk.age;
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
  if (!list.length) return "none";
  if (info?.train.steps && list.at(-1).step >= info.train.steps) return "finished";
  const [a, b] = list.filter((row) => Number.isFinite(row.tokens_per_second)).slice(-2);
  const interval = b ? secondsBetween(a, b) : 0;
  return age !== null && age < Math.max(QUIET, 4 * interval) ? "running" : "paused";
}

function secondsBetween(a, b) {
  const tokens = (b.step - a.step) * info.train.batch_size * info.spec.block_size;
  return tokens / b.tokens_per_second;
}

function show() {
  if (!info) return;
  const list = ordered();
  const now = state(list);
  $("run-state").dataset.state = now;
  $("run-state").textContent = t(`state.${now}`);
  $("live-dot").hidden = now !== "running";
  $("no-metrics").hidden = list.length > 0;
  const step = list.at(-1)?.step ?? 0;
  const steps = info.train.steps;
  const done = steps ? Math.min(1, step / steps) : 0;
  const progress = $("run-progress");
  progress.hidden = !steps || !list.length;
  progress.firstElementChild.style.width = `${100 * done}%`;
  progress.setAttribute("aria-valuenow", Math.round(100 * done));
  $("run-steps").textContent = steps && list.length ? stepsText(list, step, steps, now) : "";
  showLoaded();
  showStats(list);
}

function stepsText(list, step, steps, now) {
  const text = t("training.steps", { step: number(step), steps: number(steps) });
  const rate = last(list, "tokens_per_second");
  if (now !== "running" || !rate) return text;
  const seconds = secondsBetween({ step }, { ...rate, step: steps });
  return `${text} · ${t("training.left", { time: duration(seconds) })}`;
}

function duration(seconds) {
  const format = (value, unit) =>
    new Intl.NumberFormat(document.documentElement.lang, { style: "unit", unit, unitDisplay: "long" }).format(value);
  if (seconds < 90) return format(Math.round(seconds), "second");
  if (seconds < 5400) return format(Math.round(seconds / 60), "minute");
  return format(Math.round(seconds / 360) / 10, "hour");
}

function showLoaded() {
  const { loaded_step: loaded, newest_step: newest } = info;
  const newer = newest !== null && newest !== loaded;
  const text = loaded === null ? t("reload.none") : t("reload.loaded", { step: number(loaded) });
  $("loaded").textContent = newer ? `${text} · ${t("reload.newer", { step: number(newest) })}` : text;
  $("reload").hidden = !newer;
}

function showStats(list) {
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
    ["stat.lr", loss && loss.lr.toExponential(2), ""],
    ["stat.memory", memory && `${number(memory.memory * GIB, 2)} GiB`, ""],
  ];
  $("stats").replaceChildren(
    ...stats
      .filter(([, value]) => value)
      .map(([key, value, note]) => {
        const card = element("div");
        card.append(element("dt", t(key)), element("dd", value));
        if (note) card.append(element("dd", note, "note"));
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
      const button = element("button", number(row.step), "step");
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
  article.replaceChildren(...withMarks(chosen.sample.trim()));
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
