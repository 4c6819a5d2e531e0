// An answer from the text: sections whose lines open the passage that they stand in, with the sentence marked.

import { element } from "./dom.js";
import { t } from "./i18n.js";

const LINE = /^( *)- (.*?)(?: \[(\d+)\])?$/;

/** extra: what the API tells beside the text. ask: called with a title that is asked about next. */
export function grounded(extra, ask) {
  if (!extra.found) return notFound(extra, ask);
  const opened = sourceList(extra);
  const nodes = [];
  for (const [name, lines] of Object.entries(extra.sections)) {
    nodes.push(element("h3", name, "section"), lines.length ? section(lines, opened) : element("p", t("answer.absent"), "aside"));
  }
  return [...nodes, element("h3", t("sources.title"), "section"), opened.list];
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
    const item = element("li", text);
    if (number) item.append(" ", cite(Number(number), text, opened));
    if (!number) {
      // The name of a group of the checklist: what follows, indented, belongs to it.
      item.className = "group";
      group = element("ul", "", "lines");
      item.append(group);
      list.append(item);
    } else (indent ? group : list).append(item);
  }
  return list;
}

function cite(number, sentence, opened) {
  const button = element("button", String(number), "cite");
  button.setAttribute("aria-label", t("sources.open", { n: number }));
  button.addEventListener("click", () => opened.show(number, sentence));
  return button;
}

function sourceList(extra) {
  const list = element("div", "", "sources");
  const places = new Map();
  for (const source of extra.sources) {
    const box = element("details", "", "source");
    const title = source.title || source.passage.split("\n")[0];
    const passage = element("blockquote", source.passage);
    passage.lang = "ko";
    const summary = element("summary", `[${source.number}] ${title}`);
    if (source.file) summary.append(" ", element("span", source.file, "file"));
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
  };
  return { list, show };
}
