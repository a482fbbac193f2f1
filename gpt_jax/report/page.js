// The page: reads the data and fills its sections. What a run says is put in as text, never as
// markup.
"use strict";

// Returns an element with attributes, listeners (onclick) and children; what is no node is text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

// Returns a table of rows of text, the first its head; `marked` says which rows stand out.
function table(rows, marked = () => false) {
  const cells = (row, tag) => row.map((cell, i) => element(i ? tag : "th",
    tag === "th" ? { scope: "col" } : i ? {} : { scope: "row" }, element("bdi", {}, cell)));
  return element("div", { class: "scroll", tabindex: 0 }, element("table", {},
    element("thead", {}, element("tr", {}, cells(rows[0], "th"))),
    element("tbody", {}, rows.slice(1).map((row, i) =>
      element("tr", { class: marked(i) ? "marked" : null }, cells(row, "td"))))));
}

const toggle = (label, isOn, change, ...before) => element("button", { type: "button",
  "aria-pressed": String(isOn), onclick: (event) => {
    const now = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", String(now));
    change(now);
  } }, before, element("bdi", {}, label));

const details = (title, isOpen, ...children) =>
  element("details", { open: isOpen }, element("summary", {}, title), ...children);

const facts = (pairs) => element("dl", {}, pairs.filter(([, value]) => value !== null
  && value !== undefined && value !== "").map(([name, value]) => element("div", {},
  element("dt", {}, name), element("dd", {}, element("bdi", {}, String(value))))));

function command(text) {
  const copy = element("button", { type: "button", onclick: async () => {
    await navigator.clipboard?.writeText(text);
    copy.textContent = "copied";
  } }, "copy");
  return element("div", { class: "command" }, element("code", {}, element("bdi", {}, text)), copy);
}

const UNITS = { step: "steps", tokens: "tokens", seconds: "seconds of training" };
const CHARTS = [
  ["loss, nats per token", [["val_loss", "validation", "solid"], ["train_loss", "train", "dashed"],
    ["loss", "training batches, with dropout", "dotted"]]],
  ["bits per byte of the validation text", [["val_bpb", "", "solid"]]],
  ["learning rate", [["learning_rate", "", "solid"]]],
  ["gradient norm", [["grad_norm", "", "solid"]]],
  ["tokens per second", [["tokens_per_second", "", "solid"]]],
];

function showCurves(section, data) {
  const groups = data.groups, isMany = groups.some((group) => group.n > 1);
  const off = new Set(), kinds = { val_loss: true, train_loss: groups.length < 5,
    loss: groups.length === 1 };
  let axis = "step", showsRuns = false;
  const shared = { range: null, x: null, unit: UNITS.step,
    look(x, from) {
      shared.x = x;
      for (const chart of charts) {
        chart.look(x);
        if (chart !== from) chart.tip.hidden = true;
      }
    },
    zoom(range) {
      shared.range = range;
      reset.hidden = range === null;
      draw();
    } };
  const charts = CHARTS.map(([title]) => new Chart(title, shared));
  charts[0].isTall = true;
  const place = (curve) => axis === "tokens" ? curve.step.map((s) => s * curve.tokens_per_step)
    : axis === "seconds" ? curve.seconds ?? curve.step.map(() => null) : curve.step;
  const lines = (fields, curve, style, label, thin) => fields
    .filter(([name]) => curve[name] && kinds[name] !== false)
    .map(([name, kind, dash]) => ({ x: place(curve), y: curve[name], half: curve.halves[name],
      style, dash, thin: thin || name === "loss" || name === "grad_norm",
      label: [groups.length > 1 || thin ? label : "", kind].filter(Boolean).join(": ") || label }));
  function draw() {
    shared.unit = UNITS[axis];
    charts.forEach((chart, i) => {
      chart.series = groups.flatMap((group, g) => off.has(g) ? []
        : lines(CHARTS[i][1], group.curve, g, group.label, false));
      if (showsRuns) {
        chart.series.push(...data.runs.filter((run) => !off.has(run.group)).flatMap((run) =>
          lines(CHARTS[i][1], run.curve, run.group, run.name, true)));
      }
    });
    shared.full = spread(charts.flatMap((chart) => chart.series.flatMap((each) =>
      each.x.filter((x, i) => x !== null && each.y[i] !== null))));
    charts.forEach((chart) => chart.draw());
    shared.look(null);
  }
  const reset = element("button", { type: "button", hidden: true,
    onclick: () => shared.zoom(null) }, "show all");
  const axes = element("fieldset", {}, element("legend", {}, "over"),
    Object.entries({ step: "steps", tokens: "tokens", seconds: "seconds" }).map(([name, label]) =>
      element("label", {}, element("input", { type: "radio", name: "axis", checked: name === axis,
        onchange: () => { axis = name; shared.zoom(null); } }), label)));
  section.append(element("h2", {}, "Curves"),
    element("div", { class: "controls" }, axes,
      CHARTS[0][1].filter(([name]) => groups.some((group) => group.curve[name])).map(
        ([name, label, dash]) => toggle(label, kinds[name], (now) => { kinds[name] = now; draw(); },
          swatch(null, dash))),
      toggle("logarithmic loss", false, (now) => { charts[0].isLog = now; draw(); }),
      isMany ? toggle("each run", false, (now) => { showsRuns = now; draw(); }) : null, reset),
    element("div", { class: "controls", role: "group", "aria-label": "settings" },
      groups.length > 1 ? groups.map((group, g) => toggle(
        group.label + (group.n > 1 ? ` (${group.n} runs)` : ""), true,
        (now) => { off[now ? "delete" : "add"](g); draw(); }, swatch(g))) : null),
    element("p", { class: "hint" }, (isMany ? "Lines are means over seeds, with 95% intervals by "
      + "Student's t. " : "") + "Drag to zoom, double-click to show all; with the keyboard: arrows, "
      + "+, 0."),
    element("div", { class: "charts" }, charts.map((chart) => chart.figure)));
  draw();
  new ResizeObserver(() => {
    if (charts[0].figure.clientWidth !== charts[0].width) draw();
  }).observe(section);
  addEventListener("beforeprint", draw);
}

function showVerdicts(section, verdicts) {
  for (const verdict of verdicts) {
    section.append(element("article", { class: "verdict" }, element("h2", {}, verdict.title),
      verdict.sentences.map((text) => element("p", { class: "sentence" }, text)),
      verdict.tables.map((rows) => table(rows)),
      element("ul", {}, verdict.notes.map((note) => element("li", {}, note)))));
  }
}

function showRuns(section, data) {
  const isOne = data.runs.length === 1, names = Object.keys(data.runs[0].figures);
  const number = (value) => value === null ? "" : exactly(value);
  if (!isOne) {
    section.append(element("h2", {}, "Runs"), table([["run", "state", "seed", ...names],
      ...data.runs.map((run) => [run.name, run.state, String(run.seed),
        ...names.map((name) => number(run.figures[name]))])]));
  }
  const all = isOne ? section : details("All of each run: samples, corpus, commands, versions", false);
  if (!isOne) section.append(all);
  for (const run of data.runs) {
    const versions = Object.entries(run["made with"]);
    const parts = [
      element("h3", {}, "Corpus"), facts(Object.entries(run.corpus).filter(([, value]) =>
        typeof value !== "object")),
      element("h3", {}, "Commands"), run.commands.map(([what, text]) =>
        [element("p", {}, what), command(text)]),
      element("h3", {}, "Hardware and versions"), facts(versions),
      element("ul", {}, run.changes.map((line) => element("li", {}, line))),
    ];
    const texts = run.samples.map((sample) => element("article", { class: "sample" },
      element("h4", {}, `step ${exactly(sample.step)}`),
      element("pre", { dir: "auto" }, sample.text)));
    const samples = texts.length ? [element("h3", {}, "Samples over training"),
      element("div", { class: "samples" }, texts)] : [];
    if (isOne) section.append(...samples, ...parts.flat(2));
    else all.append(details(run.name, false, ...samples, ...parts.flat(2)));
  }
}

function showSettings(section, data) {
  const rows = data.settings.rows, labels = data.groups.map((group) => group.label);
  const head = ["setting", ...labels.slice(0, rows[0].values.length)];
  const differing = rows.filter((row) => row.differs || (labels.length === 1 && row.set));
  const body = (chosen) => chosen.map((row) => [(row.differs || row.set ? "● " : "") + row.name,
    ...row.values]);
  section.append(element("h2", {}, "Settings"));
  if (differing.length) section.append(element("h3", {}, labels.length > 1 ? "What differs" : "What is not the default"), table([head, ...body(differing)]));
  section.append(details("All settings; ● marks what differs"
    + (labels.length > 1 ? ", or is not the default" : " from the default"), false,
    table([head, ...body(rows)], (i) => rows[i].differs || rows[i].set)));
}

function showTop(header, data) {
  const [run] = data.runs;
  const theme = element("button", { type: "button", onclick: () => {
    const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
  } }, "light / dark");
  header.append(element("div", { class: "title" }, element("h1", {}, element("bdi", {}, data.title)),
    theme));
  const figures = Object.entries(run.figures).map(([name, value]) =>
    [name, value === null ? null : exactly(value)]);
  if (data.runs.length === 1) header.append(facts([["state", run.state], ...figures,
    ["corpus", run.corpus.name], ["device", run["made with"].device]]));
  header.append(element("ul", { class: "notes" }, data.notes.map((n) => element("li", {}, n))));
}

{
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const find = (id) => document.getElementById(id);
  showTop(find("top"), data);
  showVerdicts(find("verdicts"), data.verdicts);
  showCurves(find("curves"), data);
  if (typeof startLive === "function") startLive(find("live"), data.live);
  showRuns(find("facts"), data);
  showSettings(find("facts"), data);
  find("facts").append(element("h2", {}, "This page"), element("p", {},
    `Made by gpt_jax ${data.version}; made again, it shows a run as far as it has come.`),
  command(data.command));
}
