// Opens pages in headless Chromium, light and dark, wide and narrow, in both languages, and prints what it saw as JSON.
// Arguments: folder for pictures, chromium, pages.
const { chromium } = require("playwright-core");
const path = require("node:path");
const faults = require("../axe.cjs");

const [folder, executablePath, ...pages] = process.argv.slice(2);

async function look(browser, file, width, colorScheme, language) {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
  const problems = [];
  page.on("console", (message) => problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`page: ${error}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) problems.push(`request: ${request.url()}`);
  });
  await page.goto(`file://${path.resolve(file)}`);
  await page.click(`label[for=in-${language}]`);
  const seen = await page.evaluate((chosen) => {
    const shown = (element) => element.getClientRects().length > 0;
    const luminance = (colour) => {
      const [r, g, b] = colour.match(/[\d.]+/g).map((value) => {
        const part = value / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
      const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
      return (light + 0.05) / (dark + 0.05);
    };
    const card = getComputedStyle(document.querySelector("figure")).backgroundColor;
    const colours = [
      ...[...document.querySelectorAll("figure svg text")].map((text) => getComputedStyle(text).fill),
      ...[...document.querySelectorAll("figcaption, figcaption b")].map((text) => getComputedStyle(text).color),
    ];
    const lines = [...document.querySelectorAll("figure svg path[style*='--s']")].map((line) => getComputedStyle(line).stroke);
    return {
      overflow: document.documentElement.scrollWidth - innerWidth,
      // A cell that is cut off, or whose words stand one letter a line.
      cut: [...document.querySelectorAll("th, td")].filter((e) => shown(e) && (e.scrollWidth > e.clientWidth + 1 || e.clientWidth < 50)).length,
      otherLanguage: [...document.querySelectorAll("main [lang]:not(label)")].filter((e) => e.lang !== chosen && shown(e)).length,
      thisLanguage: [...document.querySelectorAll("main [lang]:not(label)")].filter((e) => e.lang === chosen && shown(e)).length,
      textContrast: Math.min(...colours.map((colour) => contrast(colour, card))),
      lineContrast: Math.min(...lines.filter((colour) => colour !== "none").map((colour) => contrast(colour, card))),
      smallest: Math.min(...[...document.querySelectorAll("figure svg text")].map((text) => text.getBoundingClientRect().height)),
      alerts: window.alerted ?? 0,
    };
  }, language);
  const name = `${path.basename(file, ".html")}-${width}-${colorScheme}-${language}`;
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
  const found = await faults(page);
  await page.close();
  return { name, problems, faults: found, ...seen };
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const views = [];
  for (const file of pages) {
    for (const width of [1280, 390])
      for (const scheme of ["light", "dark"]) for (const language of ["ko", "en"]) views.push(await look(browser, file, width, scheme, language));
  }
  await browser.close();
  console.log(JSON.stringify(views));
})();
