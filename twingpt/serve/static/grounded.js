// An answer from the text: sections whose lines open the passage that they stand in, with the sentence marked.

import { element } from "./dom.js";
import { t } from "./i18n.js";

const LINE = /^( *)- (.*?)(?: \[(\d+)\])?$/;

/** extra: what the API tells beside the text. ask: called with a title that is asked about next. */
export function grounded(extra, ask) {
  if (!extra.found) return notFound(extra, ask);
  const opened = sourceList(extra);
  const said = element("div");
  for (const [name, lines] of Object.entries(extra.sections)) {
    said.append(element("h3", name, "section"), lines.length ? section(lines, opened) : element("p", t("answer.absent"), "soft"));
  }
  opened.list.prepend(element("h3", t("sources.title"), "section"));
  return [said, opened.list];
}

function notFound(extra, ask) {
  const nodes = [element("p", t("answer.notfound"), "notfound")];
  if (extra.suggestions.length) {
    const near = element("div", "", "chips");
    for (const title of extra.suggestions) {
      const chip = element("button", title, "chip");
      chip.addEventListener("click", () => ask(title));
      near.append(chip);
    }
    nodes.push(element("p", t("answer.near"), "aside"), near);
  }
  return nodes;
}

function section(lines, opened) {
  const list = element("ul", "", "lines");
  let group = list;
  for (const line of lines) {
    const [, indent, text, number] = line.match(LINE) ?? ["", "", "", line, null];
    const item = element("li");
    if (number) item.append(...linked(text), "\u00a0", cite(Number(number), text, opened));
    if (!number) {
      // The name of a group of the checklist: what follows, indented, belongs to it.
      group = element("ul", "", "lines");
      item.append(element("strong", text), group);
      list.append(item);
    } else (indent ? group : list).append(item);
  }
  return list;
}

/** A telephone number and an address of the web can be used where they stand. */
function linked(text) {
  const found = text.match(/^(.*\b(?:TEL|WEB): )(\S.*)$/);
  if (!found) return [text];
  const [, before, rest] = found;
  const value = rest.match(before.endsWith("TEL: ") ? /^\+?[\d ()-]*\d/ : /^\S+/)?.[0];
  if (!value) return [text];
  const link = element("a", value);
  link.href = before.endsWith("TEL: ") ? `tel:${value.replace(/[^+\d]/g, "")}` : /^https?:/.test(value) ? value : `https://${value}`;
  link.target = "_blank";
  link.rel = "noreferrer";
  return [before, link, rest.slice(value.length)];
}

function cite(number, sentence, opened) {
  const button = element("button", String(number), "cite");
  button.setAttribute("aria-label", t("sources.open", { n: number }));
  button.ariaPressed = "false";
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll(".cite")) other.ariaPressed = other === button;
    opened.show(number, sentence);
  });
  return button;
}

function sourceList(extra) {
  const list = element("div", "", "sources");
  const places = new Map();
  for (const source of extra.sources) {
    const box = element("details", "", "source card");
    const title = source.title || source.passage.split("\n")[0];
    const passage = element("blockquote", source.passage);
    passage.lang = "ko";
    const summary = element("summary", `[${source.number}] ${title}`);
    if (source.file) summary.append(" ", element("span", source.file, "file soft"));
    box.append(summary, passage);
    list.append(box);
    places.set(source.number, { box, passage, text: source.passage });
  }
  const show = (number, sentence) => {
    const { box, passage, text } = places.get(number);
    const at = text.indexOf(sentence);
    const marked = element("mark", at < 0 ? "" : sentence, "cited");
    if (at < 0) passage.textContent = text;
    else passage.replaceChildren(text.slice(0, at), marked, text.slice(at + sentence.length));
    box.open = true;
    (at < 0 ? box : marked).scrollIntoView({ block: "center", behavior: "smooth" });
    // Whoever came by the keyboard goes on from the source that they opened.
    box.firstChild.focus({ preventScroll: true });
  };
  return { list, show };
}
