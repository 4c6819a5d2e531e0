// Curves over the steps of a run, drawn by uPlot, in the page's own colours.

import { onLanguage, t } from "./i18n.js";

const SYNC = "steps";
// A canvas takes no variable, and a variable that depends on light and dark is known only where it is used.
const probe = document.head.appendChild(document.createElement("span"));
const colour = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};
const charts = [];

/**
 * One chart. series: [{key, label, colour, width?}], keys of the rows of metrics; label and title are text keys.
 * value: how a number is written; scale: what a number of the row is multiplied by; log: offers a logarithmic scale.
 */
export class Chart {
  constructor(parent, { title, series, value, scale = 1, log = false, tall = false }) {
    Object.assign(this, { title, series, value, scale, log: false });
    this.card = document.createElement("figure");
    this.card.className = tall ? "chart card tall" : "chart card";
    this.caption = document.createElement("figcaption");
    this.area = document.createElement("div");
    this.area.className = "plot";
    this.card.append(this.caption, this.area);
    if (log) this.toggle = this.logToggle();
    parent.append(this.card);
    this.data = [[], ...series.map(() => [])];
    new ResizeObserver(() => this.resize()).observe(this.area);
    charts.push(this);
  }

  /** rows: objects with a step, in order. Hidden while no row has any of the chart's values. */
  show(rows) {
    const xs = [];
    const columns = this.series.map(() => []);
    for (const row of rows) {
      const values = this.series.map(({ key }) => (Number.isFinite(row[key]) ? row[key] * this.scale : null));
      if (values.every((value) => value === null)) continue;
      xs.push(row.step);
      values.forEach((value, index) => columns[index].push(value));
    }
    this.data = [xs, ...columns];
    this.card.hidden = xs.length === 0;
    if (this.card.hidden) return;
    if (!this.plot) this.create();
    else {
      const zoomed = this.zoomed();
      this.plot.setData(this.data, !zoomed);
      if (zoomed) this.plot.redraw();
      if (this.plot.cursor.idx == null) this.showLast(this.plot);
    }
  }

  create() {
    this.plot?.destroy();
    const { width, height } = this.size();
    if (!width) return;
    const label = this.series.map((one) => t(one.label));
    const grid = { stroke: () => colour("--line"), width: 1 };
    const axis = { stroke: () => colour("--soft"), font: `12px ${getComputedStyle(document.body).fontFamily}`, grid, ticks: { show: false } };
    this.plot = new uPlot(
      {
        width,
        height,
        cursor: { sync: { key: SYNC, scales: ["x", null] }, points: { size: 7 } },
        hooks: { setCursor: [(plot) => plot.cursor.idx ?? this.showLast(plot)] },
        scales: { x: { time: false }, y: { distr: this.log ? 3 : 1 } },
        axes: [
          { ...axis, size: 34, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? short(tick) : "")) },
          { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.onAxis(tick))) },
        ],
        series: [
          { label: t("chart.step"), value: (_, step) => (step === null ? "–" : String(step)) },
          ...this.series.map((one, index) => ({
            label: label[index],
            stroke: () => colour(one.colour),
            width: one.width ?? 1.75,
            spanGaps: true,
            points: { show: one.points ? undefined : false, size: 6, fill: () => colour(one.colour) },
            value: (plot, _, column, index) => this.latest(plot.data[column], index),
          })),
        ],
      },
      this.data,
      this.area,
    );
    this.showLast(this.plot);
    this.caption.firstChild?.nodeType === Node.TEXT_NODE
      ? (this.caption.firstChild.data = t(this.title))
      : this.caption.prepend(t(this.title));
    this.card.setAttribute("aria-label", t(this.title));
  }

  logToggle() {
    const label = document.createElement("label");
    label.className = "log";
    const box = document.createElement("input");
    box.type = "checkbox";
    const text = document.createElement("span");
    label.append(box, text);
    const name = () => (text.textContent = t("chart.log"));
    name();
    onLanguage(name);
    box.addEventListener("change", () => {
      this.log = box.checked;
      this.create();
    });
    this.caption.append(label);
    return label;
  }

  zoomed() {
    const xs = this.data[0];
    const { min, max } = this.plot.scales.x;
    const had = this.plot.data[0];
    return min > had[0] || max < had[had.length - 1] || xs.length < 2;
  }

  /** The value at an index, or before it: a validation holds until the next. */
  latest(column, index) {
    const value = column.slice(0, (index ?? -1) + 1).findLast((one) => one !== null);
    return value === undefined ? "–" : this.value(value);
  }

  /** With no pointer on the chart, its legend tells the newest values. */
  showLast(plot) {
    plot.setLegend({ idx: plot.data[0].length - 1 }, false);
  }

  onAxis(value) {
    if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(0);
    return value >= 10000 ? short(value) : String(Number(value.toPrecision(4)));
  }

  size() {
    return { width: this.area.clientWidth, height: this.card.classList.contains("tall") ? 300 : 190 };
  }

  resize() {
    if (this.card.hidden || !this.data[0].length) return;
    if (this.plot) this.plot.setSize(this.size());
    else this.create();
  }
}

/** After a change of theme or language. */
export function redrawCharts() {
  for (const chart of charts) if (chart.plot) chart.create();
}

function short(value) {
  return value >= 10000 ? `${value / 1000}k` : String(value);
}
