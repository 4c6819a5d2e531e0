// Drives the page in headless Chromium and prints what it saw as JSON.
// Arguments: URL of a run in training, URL of one that has nothing yet, its folder, what it gets meanwhile, a folder for
// pictures, chromium.
const { chromium } = require("playwright-core");
const fs = require("node:fs");
const path = require("node:path");
const faults = require("../axe.cjs");

const [url, freshUrl, fresh, parts, folder, executablePath] = process.argv.slice(2);
const seen = { problems: [], hosts: [], faults: [], widths: [] };
const answered = (page) => page.waitForFunction(() => !document.body.classList.contains("answering"), null, { timeout: 120000 });

function watch(page) {
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => seen.problems.push(`page: ${error.stack}`));
  page.on("response", (response) => {
    if (response.status() >= 400) seen.problems.push(`${response.status()} ${response.url()}`);
  });
  page.on("request", (request) => {
    const host = new URL(request.url()).host;
    if (host && !seen.hosts.includes(host)) seen.hosts.push(host);
  });
}

const shot = (page, name) => page.screenshot({ path: path.join(folder, `${name}.png`) });

async function ask(page, text) {
  await page.fill("#question", text);
  await page.press("#question", "Enter");
}

/** Notes, within the page, every length that an answer has while it comes. */
const noteLengths = (page) =>
  page.evaluate(() => {
    window.lengths = [];
    new MutationObserver(() => {
      if (!document.body.classList.contains("answering")) return;
      const length = [...document.querySelectorAll("#thread-free .text")].at(-1).textContent.length;
      if (length !== window.lengths.at(-1)) window.lengths.push(length);
    }).observe(document.querySelector("#thread-free"), { childList: true, subtree: true });
  });

/** From the text first: an answer with its sources, a source opened at its sentence, and a question without an answer. */
async function fromText(page) {
  seen.tab = await page.evaluate(() => document.querySelector("[role=tab][aria-selected=true]").id);
  seen.temperature = await page.inputValue("#temperature");
  seen.examples = await page.evaluate(() => [...document.querySelectorAll("#examples .chip")].map((chip) => chip.textContent));
  await ask(page, "여권을 잃어버렸을 때 해야 할 일 정리해줘");
  await page.waitForSelector(".cite");
  seen.sections = await page.evaluate(() => [...document.querySelectorAll(".section")].map((head) => head.textContent));
  await page.click(".cite");
  await page.waitForSelector("mark.cited");
  seen.file = await page.textContent(".source .file");
  seen.cited = await page.evaluate(() => document.querySelector("mark.cited").textContent);
  seen.firstLine = await page.evaluate(() => document.querySelector(".lines li").firstChild.textContent);
  seen.telephone = await page.evaluate(() => document.querySelector("a[href^='tel:']").href);
  await page.waitForTimeout(700);
  await shot(page, "text-source");
  await page.waitForFunction(() => !document.body.classList.contains("answering"));
  await ask(page, "파리 에펠탑 입장료는 얼마인가요?");
  seen.notFound = await page.textContent(".notfound");
  await page.waitForFunction(() => !document.body.classList.contains("answering"));
  await shot(page, "text-not-found");
}

async function askView(page) {
  await page.waitForSelector("#examples .chip");
  seen.language = await page.evaluate(() => document.documentElement.lang);
  await shot(page, "ask-empty");
  await fromText(page);
  await page.click("#tab-free");
  await page.fill("#max-tokens", "288");
  // Held to its form, an answer is long, whatever the model has learned by now.
  await page.check("#form-choice");
  await noteLengths(page);
  await ask(page, "대사관 전화번호 02-8555-0123 맞아요?");
  await page.waitForFunction(() => document.querySelector("#thread-free .text")?.textContent.length > 5);
  await shot(page, "ask-streaming");
  await page.waitForSelector("#thread-free .meta", { timeout: 120000 });
  seen.lengths = await page.evaluate(() => window.lengths);
  seen.meta = await page.textContent("#thread-free .meta");
  await shot(page, "ask-answered");

  await page.fill("#max-tokens", "1024");
  // Over a slow line, or a quick model has answered before the key arrives.
  const line = await page.context().newCDPSession(page);
  const speed = (downloadThroughput) =>
    line.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput, uploadThroughput: -1 });
  await line.send("Network.enable");
  await speed(5_000);
  await ask(page, "비자 연장은 어떻게 하나요?");
  await page.waitForFunction(() => document.querySelectorAll("#thread-free .text")[1]?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await answered(page);
  seen.stopped = await page.evaluate(() => [...document.querySelectorAll(".answer .aside")].at(-1)?.textContent);
  await speed(-1);
  await page.fill("#max-tokens", "320");
  await page.fill("#temperature", "0");
  await ask(page, "여권을 잃어버렸을 때 해야 할 일 정리해줘");
  await page.waitForFunction(() => document.querySelectorAll("#thread-free .meta").length === 3, null, { timeout: 120000 });
  seen.formed = await page.evaluate(() => [...document.querySelectorAll("#thread-free .text")].at(-1).textContent);
  await shot(page, "ask-formed");
}

async function trainingView(page) {
  await page.click("#tab-training");
  await page.waitForSelector("#stats div");
  await page.waitForTimeout(500);
  const step = () => page.evaluate(() => document.querySelector("#run-steps").textContent.split("/")[0]);
  const first = (seen.firstStep = await step());
  seen.state = await page.getAttribute("#run-state", "data-state");
  seen.stats = await page.evaluate(() => [...document.querySelectorAll("#stats dt")].map((name) => name.textContent));
  const loaded = await page.textContent("#loaded");
  await shot(page, "training");
  await page.waitForFunction((before) => document.querySelector("#run-steps").textContent.split("/")[0] !== before, first, { timeout: 120000 });
  seen.laterStep = await step();
  seen.charts = await page.evaluate(() => [...document.querySelectorAll(".chart:not([hidden]) figcaption")].map((e) => e.firstChild.data));
  await page.evaluate(() => document.querySelector("#samples").scrollIntoView());
  seen.samples = await page.evaluate(() => document.querySelectorAll("#sample-steps button").length);
  await shot(page, "training-samples");
  // Nobody presses anything: the next checkpoint is loaded by itself.
  await page.waitForFunction((before) => document.querySelector("#loaded").textContent !== before, loaded, { timeout: 120000 });
  seen.loaded = [loaded, await page.textContent("#loaded")];
}

/** Each view in each language, light and dark, wide and narrow: what axe finds there, and how wide it is. */
async function everyView(browser, width, colorScheme, locale) {
  const page = await browser.newPage({ viewport: { width, height: 844 }, locale, colorScheme, reducedMotion: "reduce", hasTouch: width < 600 });
  watch(page);
  const look = async (view) => {
    const name = [view, width, colorScheme, locale.slice(0, 2)].join("-");
    seen.faults.push(...(await faults(page)).map((fault) => `${name}: ${fault}`));
    seen.widths.push([name, width, await page.evaluate(() => document.documentElement.scrollWidth)]);
    if (await page.evaluate(() => document.body.textContent.includes("\ufffd"))) seen.problems.push(`${name}: U+FFFD`);
    await shot(page, name);
  };
  await page.goto(url);
  await page.click("#examples .chip");
  await page.waitForSelector(".cite");
  await page.click(".cite");
  await ask(page, "파리 에펠탑 입장료는 얼마인가요?");
  await page.waitForSelector(".notfound");
  await answered(page);
  await look("ask");
  await page.click("#tab-free");
  await look("free-empty");
  await page.evaluate(() => (document.querySelector("#settings").open = true));
  await page.fill("#max-tokens", "48");
  await ask(page, "대사관 전화번호 02-8555-0123 맞아요?");
  await page.waitForSelector("#thread-free .meta", { timeout: 120000 });
  await look("free");
  await page.click("#tab-training");
  await page.waitForSelector("#samples:not([hidden])");
  await page.waitForTimeout(300);
  await look("training");
  await page.close();
}

/** A mistake is told in Korean, on a page whose console may say what it likes. */
async function mistake(browser) {
  const page = await browser.newPage({ locale: "ko-KR" });
  await page.goto(url);
  await page.waitForSelector("#examples .chip");
  await page.click("#tab-free");
  await page.click("#document-box summary");
  await page.fill("#document", "대사관에 갑니다. ".repeat(1000));
  await ask(page, "무엇을 해야 하나요?");
  seen.mistake = await page.textContent(".error.aside");
  await page.close();
}

/** A run whose training has begun, before its first line; then it gets both that and a checkpoint. */
async function beforeTheFirstCheckpoint(browser) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, locale: "ko-KR" });
  watch(page);
  const text = () => page.evaluate(() => document.body.innerText);
  await page.goto(freshUrl);
  await page.waitForSelector("#examples .chip");
  seen.fresh = { ask: await page.isEnabled("#send") };
  await page.click("#tab-free");
  seen.fresh.free = await page.isEnabled("#send");
  seen.fresh.text = await text();
  await shot(page, "fresh-free");
  await page.click("#tab-training");
  await page.waitForSelector("#no-metrics:not([hidden])");
  seen.fresh.state = await page.getAttribute("#run-state", "data-state");
  seen.fresh.text += await text();
  await shot(page, "fresh-training");
  fs.cpSync(parts, fresh, { recursive: true });
  await page.waitForSelector("#samples:not([hidden])", { timeout: 30000 });
  await page.waitForFunction(() => /\d/.test(document.querySelector("#loaded").textContent), null, { timeout: 60000 });
  seen.fresh.sample = await page.textContent("#sample");
  await page.click("#tab-free");
  seen.fresh.freeLater = await page.isEnabled("#send");
  await page.close();
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, locale: "ko-KR", colorScheme: "light" });
  watch(page);
  await page.goto(url);
  await askView(page);
  await trainingView(page);
  await page.evaluate(() => scrollTo(0, 0));
  await page.click("#theme");
  await page.click("#lang");
  await page.waitForTimeout(300);
  seen.languageLater = await page.evaluate(() => document.documentElement.lang);
  seen.paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await shot(page, "training-dark");
  await page.close();
  await mistake(browser);
  await beforeTheFirstCheckpoint(browser);
  for (const width of [1280, 390])
    for (const scheme of ["light", "dark"]) for (const locale of ["ko-KR", "en-US"]) await everyView(browser, width, scheme, locale);
  await browser.close();
  console.log(JSON.stringify(seen));
})().catch((error) => {
  console.log(JSON.stringify({ ...seen, failed: String(error.stack) }));
  process.exitCode = 1;
});
