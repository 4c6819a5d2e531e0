// The page's frame: views, language, theme, the key, and what the server says of itself.

import { get, onKeyNeeded, post } from "./api.js";
import { answering, describeModel, startAsk, showTab } from "./ask.js";
import { redrawCharts } from "./charts.js";
import { currentLanguage, onLanguage, setLanguage, t } from "./i18n.js";
import { describeRun, startTraining } from "./training.js";

// Two tabs share a panel: asking and free writing differ in what they send, and in what is shown beside it.
const VIEWS = { ask: "view-write", free: "view-write", training: "view-training" };
const INFO_SECONDS = 5;
const RELOAD_SECONDS = 30;
const $ = (id) => document.getElementById(id);

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(`twingpt.${name}`);
    localStorage.setItem(`twingpt.${name}`, value);
  } catch {
    // Storage may be switched off; the choice then lasts as long as the page.
  }
  return null;
}

function showView(view) {
  for (const [name, panel] of Object.entries(VIEWS)) {
    $(panel).hidden = panel !== VIEWS[view];
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", name === view);
    tab.tabIndex = name === view ? 0 : -1;
  }
  $(VIEWS[view]).setAttribute("aria-labelledby", `tab-${view}`);
  $("heading").textContent = $(`tab-${view}`).textContent.trim();
  if (location.hash.slice(1) !== view) history.replaceState(null, "", `#${view}`);
  if (view === "training") return;
  showTab(view);
  if (matchMedia("(pointer: fine)").matches) $("question").focus({ preventScroll: true });
}

function currentView() {
  return Object.keys(VIEWS).find((name) => $(`tab-${name}`).ariaSelected === "true");
}

function startTabs() {
  for (const name of Object.keys(VIEWS)) {
    $(`tab-${name}`).addEventListener("click", () => showView(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const shown = Object.keys(VIEWS).filter((one) => !$(`tab-${one}`).hidden);
      const next = shown.at((shown.indexOf(name) + move) % shown.length);
      showView(next);
      $(`tab-${next}`).focus();
    });
  }
  const fromHash = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "ask");
  addEventListener("hashchange", () => showView(fromHash()));
  showView(fromHash());
}

function startLanguage() {
  const preferred = navigator.language?.toLowerCase().startsWith("ko") ? "ko" : "en";
  onLanguage(() => {
    $("lang").textContent = t("lang.other");
    if (currentView()) $("heading").textContent = $(`tab-${currentView()}`).textContent.trim();
    redrawCharts();
  });
  setLanguage(stored("language") ?? preferred);
  $("lang").addEventListener("click", () => {
    setLanguage(currentLanguage() === "ko" ? "en" : "ko");
    stored("language", currentLanguage());
  });
}

function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored("theme", root.dataset.theme);
    redrawCharts();
  });
  system.addEventListener("change", redrawCharts);
}

let pendingKey = null;

/** One dialog, however many requests are waiting for the key. */
function askForKey(wrong) {
  pendingKey ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-error").hidden = !wrong;
    $("key").value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    $("key-form").addEventListener(
      "submit",
      () => {
        pendingKey = null;
        resolve($("key").value);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return pendingKey;
}

let reloadAfter = 0;

async function refresh() {
  let info = await get("/api/run");
  const newer = info.newest_step !== null && info.newest_step !== info.loaded_step;
  if (info.follows && newer && !answering() && Date.now() > reloadAfter) {
    // The page follows a run in training. What fails is tried again later, since a newer checkpoint may be whole.
    reloadAfter = Date.now() + RELOAD_SECONDS * 1000;
    await post("/api/reload").then(() => (reloadAfter = 0), (error) => (info.problem = error.message));
    info = { ...(await get("/api/run")), problem: info.problem };
  }
  $("run-name").textContent = info.name;
  document.title = `${info.name} · twingpt`;
  $("tab-ask").hidden = !info.library;
  if (!info.library && currentView() === "ask") showView("free");
  describeModel(info);
  describeRun(info);
}

async function keepRefreshing() {
  if (!document.hidden) await refresh().catch(() => {});
  setTimeout(keepRefreshing, INFO_SECONDS * 1000);
}

onKeyNeeded(askForKey);
startLanguage();
startTheme();
startAsk();
startTraining();
startTabs();
keepRefreshing();
