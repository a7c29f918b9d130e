"use strict";

// Everything is shown as long as this has not run; what can only be used with it is hidden until then.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function startTheme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  button.hidden = false;
  name();
}

function startAgents() {
  const form = document.querySelector("form.agents");
  if (!form) return;
  const boxes = all("input", form);
  const show = () => {
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    for (const artist of all("svg [data-agent]")) {
      artist.classList.toggle("off", off.has(artist.dataset.agent) || off.has(artist.dataset.other));
    }
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", show);
  form.hidden = false;
  show();
}

function startChoice(choice) {
  const options = all(":scope > .option", choice);
  const show = (value) => options.forEach((option) => { option.hidden = option.dataset.option !== value; });
  const inputs = all(":scope > fieldset input", choice);
  inputs.forEach((input) => input.addEventListener("change", () => show(input.value)));
  show(inputs.find((input) => input.checked).value);
}

function compare(one, other, numbers) {
  const [a, b] = [one, other].map((row) => row.key);
  if (a === "" || b === "") return (a === "") - (b === "");
  return numbers ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
}

function sort(header) {
  const table = header.closest("table");
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: row.cells[header.cellIndex].dataset.sort }));
  const numbers = header.classList.contains("number");
  rows.sort((a, b) => (descending && a.key !== "" && b.key !== "" ? compare(b, a, numbers) : compare(a, b, numbers)));
  body.append(...rows.map((entry) => entry.row));
  all("th", table.tHead).forEach((other) => other.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

// Only a box whose content is wider than itself is a stop for the keyboard.
function startScrolling(box) {
  const check = () => {
    const wide = box.scrollWidth > box.clientWidth;
    box.toggleAttribute("tabindex", wide);
    if (wide) { box.tabIndex = 0; box.setAttribute("role", "region"); } else { box.removeAttribute("role"); }
  };
  new ResizeObserver(check).observe(box);
}

function startPrinting() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((fold) => { fold.open = false; }));
}

startTheme();
startAgents();
startPrinting();
all(".choice").forEach(startChoice);
all(".scroll").forEach(startScrolling);
all("thead th button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));
if (matchMedia("(max-width: 60rem)").matches) all("nav details").forEach((fold) => { fold.open = false; });
