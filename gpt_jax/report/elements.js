// Elements of the page, made by script. What a run says becomes text, never markup.
"use strict";

// Returns an element with attributes, listeners (onclick) and children; what is no node is text.
function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const items = (texts) => texts.map((text) => element("li", {}, text));

const details = (title, ...children) =>
  element("details", {}, element("summary", {}, title), children);

// Returns a table of rows of text, the first its head; `marked` says which rows stand out.
function table([head, ...rows], marked = () => false) {
  const cell = (tag, text, scope) => element(tag, { scope }, element("bdi", {}, text));
  return element("div", { class: "scroll", tabindex: 0 }, element("table", {},
    element("thead", {}, element("tr", {}, head.map((text) => cell("th", text, "col")))),
    element("tbody", {}, rows.map(([name, ...others], i) =>
      element("tr", { class: marked(i) ? "marked" : null }, cell("th", name, "row"),
        others.map((text) => cell("td", text)))))));
}

// A button that is on or off, and tells `change` which.
function toggle(label, isOn, change, icon) {
  const press = ({ currentTarget: button }) => {
    isOn = !isOn;
    button.setAttribute("aria-pressed", isOn);
    change(isOn);
  };
  return element("button", { "aria-pressed": String(isOn), onclick: press }, icon,
    element("bdi", {}, label));
}

const facts = (pairs) => element("dl", {}, pairs.filter(([, value]) => (value ?? "") !== "")
  .map(([name, value]) => element("div", {}, element("dt", {}, name),
    element("dd", {}, element("bdi", {}, String(value))))));

const command = (text) =>
  element("div", { class: "command" }, element("code", {}, element("bdi", {}, text)));
