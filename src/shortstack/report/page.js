"use strict";
{
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting: within each block, the base model stays first, what was not measured goes last.
  const value = (row, column) => {
    const cell = row.cells[column];
    return column === 0 ? cell.textContent.trim() : (cell.dataset.v ?? null);
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a === "inf" ? Infinity : a), Number(b === "inf" ? Infinity : b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : Math.sign(x - y) || 0;
  };
  const sort = (header) => {
    const table = header.closest("table");
    const column = header.cellIndex;
    const before = header.getAttribute("aria-sort");
    const down = before ? before === "ascending" : header.classList.contains("n");
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = all("tr.row", body).map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : compare(a, b) * (down ? -1 : 1)));
      body.append(...rows.map(([, row]) => row));
    }
  };
  all("thead button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));

  // A link to a step opens the lists it is in.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // What is printed has every table and chart.
  addEventListener("beforeprint", () => all("section > details:not(#trials, #steps)").forEach((each) => (each.open = true)));
}
