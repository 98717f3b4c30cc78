"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Switch to light" : "Switch to dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  const element = (name, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  for (const grid of document.querySelectorAll("table.grid")) {
    const number = grid.dataset.sample;
    const panel = document.getElementById("panel-" + number);
    const data = JSON.parse(document.getElementById("data-" + number).textContent);
    const body = grid.tBodies[0];
    const placeOf = (cell) => [cell.parentNode.sectionRowIndex, cell.cellIndex - 1];
    const cellAt = (row, column) => body.rows[row]?.cells[column + 1];
    const tapOf = (column) => grid.tHead.rows[0].cells[column + 1].textContent;

    const show = (cell) => {
      const [row, column] = placeOf(cell);
      const [entropy, label, entries] = data.cells[row][column];
      const heading = element("p", "Token " + (row + 1) + ", ");
      heading.append(element("bdi", body.rows[row].cells[0].textContent));
      const tap = tapOf(column);
      heading.append((tap === "output" ? ", the output: " : ", tap " + tap + ": ")
        + "entropy " + entropy + " nats, label log-p " + label + " nats");
      const likely = element("ul");
      const drawn = element("ul");
      for (let index = 0; index < entries.length; index += 2) {
        const item = element("li");
        const percent = entries[index + 1];
        item.append(element("bdi", data.words[entries[index]]));
        if (percent >= 0) {
          item.style.setProperty("--p", percent);
          item.append(" " + percent + " %");
        } else if (percent < -1) {
          item.append(" × " + -percent);
        }
        (percent >= 0 ? likely : drawn).append(item);
      }
      const lists = [likely];
      if (drawn.childElementCount) lists.push(element("p", "Drawn among all others:"), drawn);
      panel.replaceChildren(heading, ...lists);
      panel.hidden = false;
    };
    const reach = (cell) => {
      for (const other of grid.querySelectorAll("td[tabindex='0']")) other.tabIndex = -1;
      cell.tabIndex = 0;
    };
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

    for (const cell of grid.querySelectorAll("td")) cell.tabIndex = -1;
    const first = cellAt(0, 0);
    if (first) first.tabIndex = 0;
    const within = (event) => event.target.closest("td");
    grid.addEventListener("mouseover", (event) => {
      const cell = within(event);
      if (cell && !grid.contains(document.activeElement)) show(cell);
    });
    grid.addEventListener("focusin", (event) => {
      const cell = within(event);
      if (cell) { reach(cell); show(cell); }
    });
    grid.addEventListener("keydown", (event) => {
      const cell = within(event);
      if (!cell) return;
      const [row, column] = placeOf(cell);
      const last = cell.parentNode.cells.length - 2;
      let target;
      if (event.key in steps) target = cellAt(row + steps[event.key][0], column + steps[event.key][1]);
      else if (event.key === "Home") target = cellAt(row, 0);
      else if (event.key === "End") target = cellAt(row, last);
      else if (event.key === "Escape") { panel.hidden = true; cell.blur(); }
      else return;
      event.preventDefault();
      if (target && target.tagName === "TD") target.focus();
    });
    const article = grid.closest("article");
    article.addEventListener("mouseleave", () => {
      if (!grid.contains(document.activeElement)) panel.hidden = true;
    });
    article.addEventListener("focusout", (event) => {
      if (!article.contains(event.relatedTarget)) panel.hidden = true;
    });
  }
})();
