"use strict";
// Tables of class "sortable": a click on a head sorts by its column, up, then down, then as it was.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], asGiven = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const MISSING = new Set(["", "-", "–"]);
  const text = (row, i) => row.cells[i].textContent.trim();
  const number = (text) => {
    const found = /^[<>≤≥]?\s*([+\-−]?)(∞|[\d,]*\.?\d+(?:e[+\-]?\d+)?)(?=$|[\s%±(])/i.exec(text);
    if (!found) return NaN;
    const size = found[2] === "∞" ? Infinity : parseFloat(found[2].replaceAll(",", ""));
    return found[1] === "-" || found[1] === "−" ? -size : size;
  };
  const sorted = (i, sign) => {
    const there = asGiven.filter((row) => !MISSING.has(text(row, i)));
    const numeric = there.every((row) => !Number.isNaN(number(text(row, i))));
    const order = numeric
      ? (a, b) => { const x = number(text(a, i)), y = number(text(b, i)); return x < y ? -sign : x > y ? sign : 0; }
      : (a, b) => sign * text(a, i).localeCompare(text(b, i), "en");
    return [...there.sort(order), ...asGiven.filter((row) => MISSING.has(text(row, i)))];
  };
  heads.forEach((head, i) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const next = way === undefined ? "ascending" : way;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      body.append(...(next ? sorted(i, next === "ascending" ? 1 : -1) : asGiven));
    });
  });
}
