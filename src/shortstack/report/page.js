"use strict";
{
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // Colours: as the system has them, light, dark.
  const themes = { "": ["Auto", "as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("shortstack-theme") || "";
      localStorage.setItem("shortstack-theme", value);
    } catch { /* a file: page may have no storage; the choice then lasts as long as the page */ }
    return "";
  };
  const paint = (theme) => {
    document.documentElement.dataset.theme = theme;
    one("theme").textContent = themes[theme][0];
    one("theme").setAttribute("aria-label", `Colours: ${themes[theme][1]}`);
  };
  one("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    paint(next);
    stored(next);
  });
  paint(stored() in themes ? stored() : "");

  // The unpruned model's row stays below the head, however many lines that has.
  const heads = new ResizeObserver((entries) => {
    for (const { target } of entries) target.closest("table").style.setProperty("--head", `${target.offsetHeight}px`);
  });
  all("thead").forEach((head) => heads.observe(head));

  // Sorting: within each block, the unpruned model stays first, what was not measured goes last.
  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent.trim();
    return cell.dataset.v ?? null;
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a === "inf" ? Infinity : a), Number(b === "inf" ? Infinity : b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : Math.sign(x - y) || 0;
  };
  const sort = (header) => {
    const table = header.closest("table");
    const column = header.cellIndex;
    const numbers = header.classList.contains("n");
    const before = header.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numbers;
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = all("tr.row", body).map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : compare(a, b) * (down ? -1 : 1)));
      body.append(...rows.map(([, row]) => row));
    }
  };
  all("thead button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));

  // Filtering: chips of one factor are alternatives, factors and words are all asked for; lines in figures go by chips.
  const chips = all(".chip");
  const rows = all("tr.row");
  const filter = () => {
    const words = one("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = {};
    chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").forEach((chip) => {
      const [factor] = chip.dataset.t.split(".");
      (wanted[factor] ??= []).push(chip.dataset.t);
    });
    const fits = (tokens) => Object.entries(wanted).every(([factor, levels]) => {
      const mine = tokens.filter((token) => token.startsWith(`${factor}.`));
      return !mine.length || mine.some((token) => levels.includes(token));
    });
    const text = (row) => `${row.textContent} ${row.parentElement.querySelector(".block")?.textContent ?? ""}`.toLowerCase();
    all("[data-f]").forEach((each) => each.classList.toggle("out", !fits(each.dataset.f.split(" "))));
    if (words.length) {
      rows.filter((row) => !row.classList.contains("out"))
        .forEach((row) => row.classList.toggle("out", !words.every((word) => text(row).includes(word))));
    } else {
      rows.filter((row) => !row.dataset.f).forEach((row) => row.classList.remove("out"));
    }
    all("tbody").forEach((body) => body.classList.toggle("out", !!body.querySelector(".row") && !body.querySelector(".row:not(.out)")));
    const pressed = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").length;
    const active = words.length + pressed > 0;
    const left = rows.filter((row) => !row.classList.contains("out")).length;
    one("count").textContent = active ? `${left} of ${rows.length} rows` : "";
    one("clear").hidden = !active;
    document.documentElement.toggleAttribute("data-filtered", active);
    if (active) all("details.table").forEach((each) => (each.open = true));
    if (one("chosen")) one("chosen").textContent = pressed || "";
  };
  one("bar").hidden = false;
  one("find").addEventListener("input", filter);
  chips.forEach((chip) => chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
    filter();
  }));
  one("clear").addEventListener("click", () => {
    one("find").value = "";
    chips.forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    filter();
    one("find").focus();
  });

  // Where a number comes from: its step, as the list at the end has it, in a dialog.
  const dialog = one("origin-dialog");
  const show = (ids, compared) => {
    const body = one("origin-body");
    const entries = ids.map(one).filter(Boolean);
    body.replaceChildren();
    if (compared) {
      const said = document.createElement("p");
      said.className = "compared";
      said.textContent = compared;
      body.append(said);
    }
    for (const entry of entries) {
      if (entries.length > 1) {
        const heading = document.createElement("h3");
        heading.textContent = entry.querySelector("summary").textContent;
        body.append(heading);
      }
      for (const child of entry.children) if (child.tagName !== "SUMMARY") body.append(child.cloneNode(true));
    }
    one("origin-title").textContent = entries.length === 1 ? entries[0].querySelector("summary").textContent : `${entries.length} steps`;
    if (entries.length && !dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.v");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link.dataset.s ? link.dataset.s.trim().split(" ") : [link.hash.slice(1)], link.title);
  });
  one("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  // A link from outside to a step opens the lists it is in.
  const reveal = () => {
    for (let at = one(location.hash.slice(1)); at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();

  // What is printed is whole.
  addEventListener("beforeprint", () => all("details.table, details.more").forEach((each) => (each.open = true)));

  // The panel of chips closes as menus do.
  const panel = document.querySelector(".chips");
  document.addEventListener("click", (event) => panel && !panel.contains(event.target) && (panel.open = false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && panel && (panel.open = false));
}
