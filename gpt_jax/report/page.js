// The page: reads the data and fills its sections, which stand in page.html.
"use strict";

const byId = (id) => document.getElementById(id);
const UNITS = { step: "steps", tokens: "tokens", seconds: "seconds of training" };
// A title, and for each line of a setting: a field of the curve, its kind, how it is dashed.
const CHARTS = [
  ["loss, nats per token", [["val_loss", "validation", "solid"], ["train_loss", "train", "dashed"],
    ["loss", "training batches, with dropout", "dotted"]]],
  ["bits per byte of the validation text", [["val_bpb", "", "solid"]]],
  ["learning rate", [["learning_rate", "", "solid"]]],
  ["gradient norm", [["grad_norm", "", "solid"]]],
  ["tokens per second", [["tokens_per_second", "", "solid"]]],
];

function showCurves({ groups, runs }) {
  const hidden = new Set(), isMany = groups.some((group) => group.n > 1);
  const kinds = { val_loss: true, train_loss: groups.length < 5, loss: groups.length === 1 };
  let axis = "step", showsRuns = false, range = null;
  const charts = CHARTS.map(([title], i) => new Chart(title, i === 0, zoom));
  function zoom(to) {
    range = to;
    draw();
  }

  function points(curve, field) {
    const xs = { ...curve, tokens: curve.step.map((step) => step * curve.tokens_per_step) }[axis];
    return curve.step.map((_, i) => [xs?.[i], curve[field]?.[i], curve.halves[field]?.[i] ?? 0])
      .filter(([x, y]) => x != null && y != null);
  }
  const lines = (curve, style, label, thin) => ([field, kind, dash]) => ({ style, dash,
    points: kinds[field] === false ? [] : points(curve, field),
    thin: thin || field === "loss" || field === "grad_norm",
    label: [groups.length > 1 || thin || !kind ? label : "", kind].filter(Boolean).join(": ") });
  function draw() {
    const made = groups.map((group, g) => [group.curve, g, group.label, false]);
    if (showsRuns) made.push(...runs.map((run) => [run.curve, run.group, run.name, true]));
    const all = CHARTS.map(([, fields]) => made.filter(([, g]) => !hidden.has(g))
      .flatMap((one) => fields.map(lines(...one))).filter((series) => series.points.length));
    const full = spread(all.flat().flatMap((series) => series.points.map(([x]) => x)));
    charts.forEach((chart, i) => chart.draw(all[i], range ?? full, UNITS[axis]));
  }

  byId("axes").onchange = ({ target }) => {
    axis = target.value;
    zoom(null);
  };
  // Returns a button that sets something, and draws anew.
  const button = (label, isOn, set, icon) => toggle(label, isOn, (now) => {
    set(now);
    draw();
  }, icon);
  const there = CHARTS[0][1].filter(([field]) => groups.some((group) => group.curve[field]));
  byId("shown").append(
    ...there.map(([field, label, dash]) =>
      button(label, kinds[field], (now) => (kinds[field] = now), swatch(null, dash))),
    isMany ? button("each run", false, (now) => (showsRuns = now)) : "");
  if (groups.length > 1) {
    byId("groups").append(...groups.map(({ label, n }, g) => button(
      label + (n > 1 ? ` (${n} runs)` : ""), true,
      (now) => (now ? hidden.delete(g) : hidden.add(g)), swatch(g))));
  }
  byId("means").hidden = !isMany;
  byId("charts").append(...charts.map((chart) => chart.figure));
  draw();
  new ResizeObserver(() => {
    if (charts[0].figure.clientWidth !== charts[0].width) draw();
  }).observe(byId("curves"));
  addEventListener("beforeprint", draw);
}

const verdict = ({ title, sentences, tables, notes }) => element("article", {},
  element("h2", {}, title), sentences.map((text) => element("p", { class: "sentence" }, text)),
  tables.map((rows) => table(rows)), element("ul", {}, items(notes)));

const number = (value) => value === null ? "" : exactly(value);

// All that is said of one run but its figures.
const about = (run) => [
  element("h3", { hidden: !run.samples.length }, "Samples over training"),
  element("div", { class: "samples" }, run.samples.map(({ step, text }) =>
    element("article", { class: "sample" }, element("h4", {}, `step ${exactly(step)}`),
      element("pre", { dir: "auto" }, text)))),
  element("h3", {}, "Corpus"), facts(Object.entries(run.corpus)),
  element("h3", {}, "Commands"),
  run.commands.map(([what, text]) => [element("p", {}, what), command(text)]),
  element("h3", {}, "Hardware and versions"), facts(Object.entries(run["made with"])),
  element("ul", {}, items(run.changes)),
];

function showRuns(section, { runs }) {
  const names = Object.keys(runs[0].figures), head = ["run", "state", "seed", ...names];
  const rows = runs.map(({ name, state, seed, figures }) =>
    [name, state, String(seed), ...names.map((figure) => number(figures[figure]))]);
  filled(section, {}, runs.length === 1 ? about(runs[0])
    : [table([head, ...rows]), runs.map((run) => details(run.name, about(run)))]);
}

function showSettings(section, { settings: { rows }, groups }) {
  const isOne = groups.length === 1, head = ["setting", ...groups.map((group) => group.label)];
  const isMarked = (row) => row.differs || row.set;
  const settings = (chosen) => [head.slice(0, 1 + rows[0].values.length), ...chosen.map((row) =>
    [(isMarked(row) ? "● " : "") + row.name, ...row.values])];
  const differing = rows.filter((row) => row.differs || (isOne && row.set));
  filled(section, {}, [
    differing.length ? [element("h3", {}, isOne ? "What is not the default" : "What differs"),
      table(settings(differing))] : null,
    details(`All settings; ● marks what differs ${isOne ? "from" : "or is not"} the default`,
      table(settings(rows), (i) => isMarked(rows[i])))]);
}

{
  const data = JSON.parse(byId("report-data").textContent), [run] = data.runs;
  let isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  byId("theme").onclick = () => {
    isDark = !isDark;
    document.documentElement.style.colorScheme = isDark ? "dark" : "light";
  };
  if (data.runs.length === 1) {
    const figures = Object.entries(run.figures).map(([name, value]) => [name, number(value)]);
    const { machine, device } = run["made with"];
    byId("terms").before(facts([["state", run.state], ...figures,
      ["corpus", run.corpus.name], ["machine", machine], ["device", device]]));
  } else byId("runs").append(byId("terms"));
  document.querySelector("header").append(element("ul", { class: "notes" }, items(data.notes)));
  byId("verdicts").append(...data.verdicts.map(verdict));
  showCurves(data);
  const { reason } = data.live;
  if (reason) byId("alive").replaceWith(`The page can't compute with this model. ${reason}`);
  else new Live(data.live);
  showRuns(byId("runs"), data);
  showSettings(byId("settings"), data);
  byId("page").append(element("p", {},
    `Made by gpt_jax ${data.version}; made again, it shows a run as far as it has come.`),
  command(data.command));
}
