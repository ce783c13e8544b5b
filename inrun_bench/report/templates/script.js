"use strict";
// Sorting, filtering and the choice of light or dark. Without this script the page is complete.

function numberOf(cell) {
  return cell.dataset.number === undefined ? null : Number(cell.dataset.number);
}

function sortBy(table, place, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const numeric = [...body.rows].some((row) => numberOf(row.cells[place]) !== null);
  const rows = [...body.rows].map((row, before) => {
    const cell = row.cells[place];
    return { row, before, key: numeric ? numberOf(cell) : cell.textContent.trim() };
  });
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.before - b.before; // missing ones last
    const order = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
    return sign * order || a.before - b.before;
  });
  body.append(...rows.map((each) => each.row));
}

function makeSortable(table) {
  const lines = [...table.tHead.rows];
  const heads = lines.length === 1 ? [...lines[0].cells] : [lines[0].cells[0], ...lines[1].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.hasAttribute("data-larger") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      sortBy(table, place, direction);
    });
  });
}

function holds(row, words) {
  return row.cells[0].textContent.toLowerCase().includes(words.trim().toLowerCase());
}

function filterBoard(form, table) {
  const { question, task, method, shown } = form.elements;
  const [groups, heads] = table.tHead.rows;
  const columns = [...heads.cells];
  const visible = columns.map((head) =>
    (!question.value || head.dataset.question === question.value) && (!task.value || head.dataset.task === task.value));
  columns.forEach((head, i) => { head.hidden = !visible[i]; });
  for (const row of [...table.tBodies[0].rows, ...table.tFoot.rows]) {
    visible.forEach((is, i) => { row.cells[i + 1].hidden = !is; });
  }
  for (const group of [...groups.cells].slice(1)) {
    const span = columns.filter((head, i) => visible[i] && head.dataset.question === group.dataset.group).length;
    group.hidden = span === 0;
    group.colSpan = Math.max(span, 1);
  }
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row) => { row.hidden = !holds(row, method.value); });
  const count = (all, some) => `${some.length} of ${all.length}`;
  shown.value = `${count(rows, rows.filter((row) => !row.hidden))} methods, ${count(columns, visible.filter(Boolean))} columns`;
}

function addFilter(section) {
  const tables = [...section.querySelectorAll("table.told")];
  if (!tables.length) return;
  const form = document.createElement("form");
  form.className = "controls";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", section.querySelector("h2").textContent);
  const label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search";
  input.autocomplete = "off";
  label.append(tables.length === 1 ? "Rows of this table with" : `Rows of these ${tables.length} tables with`, input);
  input.placeholder = "part of a name";
  form.append(label);
  form.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", () => {
    const words = input.value.trim().toLowerCase();
    for (const row of tables.flatMap((table) => [...table.tBodies[0].rows])) {
      row.hidden = !row.textContent.toLowerCase().includes(words);
    }
  });
  tables[0].closest(".scroller").before(form);
}

function addThemeButton() {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "theme";
  const dark = () => (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { document.documentElement.style.colorScheme = dark() ? "light" : "dark"; name(); });
  name();
  document.querySelector("header.top").append(button);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("main > section").forEach(addFilter);
addThemeButton();
const controls = document.getElementById("board-controls");
if (controls) {
  const board = document.querySelector("#board table");
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => filterBoard(controls, board));
  filterBoard(controls, board);
}
