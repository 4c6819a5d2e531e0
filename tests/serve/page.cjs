// Drives the page in headless Chromium and prints what it saw as JSON. Arguments: URL, folder for pictures, chromium.
const { chromium } = require("playwright-core");
const path = require("node:path");

const [url, folder, executablePath] = process.argv.slice(2);
const seen = { problems: [], hosts: [] };

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
      const length = [...document.querySelectorAll(".answer .text")].at(-1).textContent.length;
      if (length !== window.lengths.at(-1)) window.lengths.push(length);
    }).observe(document.querySelector("#thread"), { childList: true, subtree: true });
  });

/** From the text first: an answer with its sources, a source opened at its sentence, and a question without an answer. */
async function fromText(page) {
  seen.mode = await page.evaluate(() => document.querySelector("input[name=mode]:checked").value);
  seen.examples = await page.evaluate(() => [...document.querySelectorAll("#examples .chip")].map((chip) => chip.textContent));
  await ask(page, "여권을 잃어버렸을 때 해야 할 일 정리해줘");
  await page.waitForSelector(".cite");
  seen.sections = await page.evaluate(() => [...document.querySelectorAll(".section")].map((head) => head.textContent));
  await page.click(".cite");
  await page.waitForSelector("mark.cited");
  seen.file = await page.textContent(".source .file");
  seen.cited = await page.evaluate(() => document.querySelector("mark.cited").textContent);
  seen.firstLine = await page.evaluate(() => document.querySelector(".lines li").firstChild.textContent);
  await page.waitForTimeout(700);
  await shot(page, "text-source");
  await page.waitForFunction(() => !document.body.classList.contains("answering"));
  await ask(page, "파리 에펠탑 입장료는 얼마인가요?");
  seen.notFound = await page.textContent(".notfound");
  await page.waitForFunction(() => !document.body.classList.contains("answering"));
  await shot(page, "text-not-found");
  await page.evaluate(() => document.querySelector("#thread").replaceChildren());
}

async function askView(page) {
  await page.waitForFunction(() => document.querySelector("#welcome-model").textContent);
  seen.language = await page.evaluate(() => document.documentElement.lang);
  await shot(page, "ask-empty");
  await fromText(page);
  await page.check("input[name=mode][value=ask]", { force: true });
  await page.fill("#max-tokens", "288");
  // Held to its form, an answer is long, whatever the model has learned by now.
  await page.check("#form-choice");
  await noteLengths(page);
  await ask(page, "대사관 전화번호 02-8555-0123 맞아요?");
  await page.waitForFunction(() => document.querySelector(".answer .text")?.textContent.length > 5);
  await shot(page, "ask-streaming");
  await page.waitForSelector(".meta", { timeout: 120000 });
  seen.lengths = await page.evaluate(() => window.lengths);
  seen.answer = await page.textContent(".answer .text");
  seen.meta = await page.textContent(".meta");
  await shot(page, "ask-answered");

  await page.fill("#max-tokens", "1024");
  // Over a slow line, or a quick model has answered before the key arrives.
  const line = await page.context().newCDPSession(page);
  const speed = (downloadThroughput) =>
    line.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput, uploadThroughput: -1 });
  await line.send("Network.enable");
  await speed(5_000);
  await ask(page, "비자 연장은 어떻게 하나요?");
  await page.waitForFunction(() => document.querySelectorAll(".answer .text")[1]?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.body.classList.contains("answering"));
  seen.stopped = await page.evaluate(() => [...document.querySelectorAll(".answer .aside")].at(-1)?.textContent);
  await speed(-1);
  await page.fill("#max-tokens", "320");
  await page.fill("#temperature", "0");
  await ask(page, "여권을 잃어버렸을 때 해야 할 일 정리해줘");
  await page.waitForFunction(() => !document.body.classList.contains("answering") && document.querySelectorAll(".meta").length === 3, null, {
    timeout: 120000,
  });
  seen.formed = await page.evaluate(() => [...document.querySelectorAll(".answer .text")].at(-1).textContent);
  await shot(page, "ask-formed");
}

async function trainingView(page) {
  await page.click("#tab-training");
  await page.waitForSelector("#stats div");
  await page.waitForTimeout(500);
  const step = () => page.evaluate(() => document.querySelector("#run-steps").textContent.split("/")[0]);
  const first = (seen.firstStep = await step());
  seen.state = await page.getAttribute("#run-state", "data-state");
  await shot(page, "training");
  await page.waitForFunction((before) => document.querySelector("#run-steps").textContent.split("/")[0] !== before, first, { timeout: 120000 });
  seen.laterStep = await step();
  seen.charts = await page.evaluate(() => [...document.querySelectorAll(".chart:not([hidden]) figcaption")].map((e) => e.firstChild.data));
  await page.evaluate(() => document.querySelector("#samples").scrollIntoView());
  seen.samples = await page.evaluate(() => document.querySelectorAll("#sample-steps button").length);
  await shot(page, "training-samples");
  if (await page.isVisible("#reload")) {
    await page.click("#reload");
    await page.waitForFunction(() => !document.querySelector("#reload").disabled);
  }
  seen.loaded = await page.textContent("#loaded");
}

async function width(page) {
  return page.evaluate(() => document.documentElement.scrollWidth);
}

async function narrow(browser) {
  const page = await browser.newPage({ viewport: { width: 390, height: 844 }, locale: "en-US", colorScheme: "dark", hasTouch: true });
  watch(page);
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#welcome-model").textContent);
  seen.narrowLanguage = await page.evaluate(() => document.documentElement.lang);
  await shot(page, "narrow-ask");
  await page.click(".chip");
  await page.waitForSelector(".meta", { timeout: 60000 });
  await shot(page, "narrow-answered");
  seen.narrowAsk = await width(page);
  await page.click("#tab-training");
  await page.waitForSelector("#stats div");
  await page.waitForTimeout(500);
  await shot(page, "narrow-training");
  await page.evaluate(() => document.querySelector("#samples").scrollIntoView());
  await shot(page, "narrow-samples");
  seen.narrowTraining = await width(page);
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
  await shot(page, "training-dark");
  await page.click("#tab-ask");
  await page.waitForTimeout(200);
  await shot(page, "ask-dark");
  await narrow(browser);
  await browser.close();
  console.log(JSON.stringify(seen));
})().catch((error) => {
  console.log(JSON.stringify({ ...seen, failed: String(error.stack) }));
  process.exitCode = 1;
});
