// The page's frame: views, language, theme, the key, and what the server says of itself.

import { get, onKeyNeeded } from "./api.js";
import { describeModel, startAsk } from "./ask.js";
import { redrawCharts } from "./charts.js";
import { currentLanguage, onLanguage, setLanguage, t } from "./i18n.js";
import { describeRun, startTraining } from "./training.js";

const VIEWS = ["ask", "training"];
const INFO_SECONDS = 5;
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
  for (const name of VIEWS) {
    $(`view-${name}`).hidden = name !== view;
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", name === view);
    tab.tabIndex = name === view ? 0 : -1;
  }
  if (location.hash.slice(1) !== view) history.replaceState(null, "", `#${view}`);
  if (view === "ask" && matchMedia("(pointer: fine)").matches) $("question").focus();
}

function startTabs() {
  const tabs = VIEWS.map((name) => $(`tab-${name}`));
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => showView(VIEWS[index]));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const next = (index + move + tabs.length) % tabs.length;
      showView(VIEWS[next]);
      tabs[next].focus();
    });
  }
  const fromHash = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ask");
  addEventListener("hashchange", () => showView(fromHash()));
  showView(fromHash());
}

function startLanguage() {
  const preferred = navigator.language?.toLowerCase().startsWith("ko") ? "ko" : "en";
  onLanguage(() => {
    $("lang").textContent = t("lang.other");
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

async function refresh() {
  const info = await get("/api/run");
  $("run-name").textContent = info.name;
  document.title = `${info.name} · twingpt`;
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
startTraining(refresh);
startTabs();
keepRefreshing();
