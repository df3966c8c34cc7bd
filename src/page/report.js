// Draws a report from the JSON in its page: title, introduction, charts, tables.
function drawReport({ title, text, sections }) {
  const main = document.getElementById("report");
  main.append(el("h1", { text: title }), el("p", { class: "soft panel", text }));
  for (const section of sections) {
    const panel = el("section", { class: "panel" }, el("h2", { text: section.title }), section.text ? el("p", { class: "soft small", text: section.text }) : null);
    main.append(panel);
    for (const each of section.charts) {
      const figure = chart(each.title), unit = each.unit ? ` ${each.unit}` : "", percent = each.percent;
      panel.append(figure.figure);
      figure.update({
        height: 190, time: false, fromZero: true, yMax: each.y_max ?? undefined, yLimit: each.y_limit ?? undefined, note: each.axis, label: `${each.title}: ${each.series.map(series => series.name).join(", ")}`,
        xText: x => `${format.number(x, Number.isInteger(x) ? 0 : 2)}${each.x_unit ? ` ${each.x_unit}` : ""}`, yText: percent ? y => format.percent(y, 0) : ["s", "ms"].includes(each.unit) ? y => `${format.number(y, each.unit === "s" && y % 1 ? 1 : 0)}${unit}` : undefined,
        valueText: percent ? y => format.percent(y) : y => `${format.number(y, 2)}${unit}`,
        level: each.level ? { y: each.level, text: `target ${format.number(each.level, each.level < 10 ? 1 : 0)}${unit}` } : undefined,
        marks: each.marks.map(x => ({ x, text: "flip" })).concat(each.x_level ? [{ x: each.x_level, text: "target" }] : []),
        series: each.series.map((series, place) => ({ ...series, style: series.style || `c${place % 6 + 1}` })),
      });
    }
    if (section.table) panel.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": section.title }, el("table", {}, headings(...section.table.head),
      el("tbody", {}, section.table.rows.map(row => el("tr", {}, row.map((text, place) => cell(text, section.table.head[place].startsWith(">") ? "n" : null))))))));
  }
}
drawReport(JSON.parse(document.getElementById("data").textContent));
