// The page: reads the data and fills each section. Text of a run is put in as text, never as markup.
"use strict";

// Returns an element with attributes and children; a child that is no element becomes text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

{
  const data = JSON.parse(document.getElementById("report-data").textContent);
  document.getElementById("top").append(element("h1", {}, data.title));
  if (typeof startLive === "function") startLive(document.getElementById("live"), data.live);
}
