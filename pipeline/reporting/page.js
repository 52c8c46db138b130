// Every table sorts by a click on a heading (or Enter, Space): ascending, descending, and back to its own order.
// Numbers come from `data-sort`; a cell that should hold one and does not goes last. Without this file the tables stand as they are.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const bodies = [...table.tBodies];
  const order = bodies.map((body) => [...body.rows]);
  const entries = order.flat().filter((row) => !row.classList.contains("group"));
  const headings = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  const value = (row, column, numeric) => {
    const cell = row.cells[column];
    if (numeric) return cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
    return cell.querySelector(".value").textContent;
  };
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * words.compare(a, b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  const arrange = (column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    const numeric = headings[column].classList.contains("number");
    const keyed = entries.map((row) => [value(row, column, numeric), row]);
    // Groups are dissolved: each row then names its own above its first cell.
    bodies[0].append(...keyed.sort((a, b) => compare(a[0], b[0], sign)).map((pair) => pair[1]));
  };
  const restore = () => bodies.forEach((body, i) => body.append(...order[i]));

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.getAttribute("aria-sort")];
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== "none");
      if (next === "none") restore();
      else arrange(column, next);
      const how = next === "none" ? "in its own order" : `sorted by ${button.textContent}, ${next}`;
      document.getElementById("status").textContent = `Table ${how}`;
    });
  });
}
// A link into a closed fold opens it; paper has no folds.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// On paper what is folded stands open, but for the long lists of how it was made; afterwards it is as it was.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.fold:not([open])")].filter((fold) => !fold.closest('[aria-labelledby="made"]'));
  opened.forEach((fold) => { fold.open = true; });
});
addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
