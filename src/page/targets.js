// Targets: attainment, and TTFT, TPOT and ITL percentiles against their targets, by model and service class.
const targetsView = { id: "targets", title: "Targets" };

targetsView.build = root => {
  const view = targetsView;
  view.charts = [chart("Attainment"), chart("TTFT"), chart("TPOT")];
  view.body = el("tbody");
  view.note = el("span", { class: "soft small" });
  view.table = el("div", { class: "panel scroll", tabindex: "0", role: "region", "aria-label": "Latencies by model and service class" },
    el("div", { class: "row head" }, el("h2", { text: "By model and class" }), view.note),
    el("table", {}, el("thead", {},
      el("tr", {}, ["", "", "", "Attainment", "TTFT", "TPOT", "ITL (gap of two chunks)"].map((text, place) => text ? el("th", { colspan: 3, scope: "colgroup", text }) : el("td", {}))),
      el("tr", {}, ["Model", "Class", ">Requests", ">both", ">TTFT", ">TPOT", ">p50", ">p90", ">p99", ">p50", ">p90", ">p99", ">p50", ">p90", ">p99"].map(name => el("th", { scope: "col", class: name.startsWith(">") ? "n" : null, text: name.replace(">", "") })))), view.body));
  view.state = el("div");
  root.append(view.state, view.table, el("div", { class: "panel" }, view.charts[0].figure), el("div", { class: "split2" }, el("div", { class: "panel" }, view.charts[1].figure), el("div", { class: "panel" }, view.charts[2].figure)));
};

targetsView.update = () => {
  const view = targetsView, { snapshot, points } = live, { targets } = snapshot;
  const known = targets.models.length > 0;
  view.table.hidden = !known;
  if (known) view.state.replaceChildren();
  else if (!view.state.firstChild) view.state.replaceChildren(el("div", { class: "panel" }, stateOf("No request has ended in the last five minutes", "Attainment and latencies by model appear with the first answer.")));
  setText(view.note, `last ${format.seconds(targets.window_seconds)}; default targets: TTFT ${format.seconds(targets.ttft_seconds)}, TPOT ${format.seconds(targets.tpot_seconds)}${targets.itl_seconds ? `, largest gap ${format.seconds(targets.itl_seconds)}` : ""}; ▲ is above the target of the class`);
  keyed(view.body, targets.models, model => `${model.model} ${model.class}`, model => el("tr", {}, el("th", { scope: "row", text: model.model }), cell(model.class, ""), Array.from({ length: 13 }, () => cell("", "n"))), (row, model) => {
    const cells = row.children;
    setText(cells[2], format.count(model.requests));
    [model.attainment, model.ttft_attainment, model.tpot_attainment].forEach((share, place) => { setText(cells[3 + place], share === null ? "–" : format.percent(share)); cells[3 + place].className = share !== null && share < 0.9 ? "n bad" : "n"; });
    const fill = (from, values, target) => ["p50", "p90", "p99"].forEach((name, place) => {
      const over = target && values[name] > target;
      setText(cells[from + place], `${format.seconds(values[name])}${over ? " ▲" : ""}`);
      cells[from + place].className = over ? "n bad" : "n";
    });
    fill(6, model.ttft, model.ttft_seconds); fill(9, model.tpot, model.tpot_seconds); fill(12, model.itl, model.itl_seconds);
  });
  const [attainment, ttft, tpot] = view.charts, from = Math.max(points[0]?.at ?? snapshot.at - 60, snapshot.at - 900), x = [Math.min(from, snapshot.at - 60), snapshot.at];
  const line = (name, style, of) => ({ name, style, kind: "line", points: points.map(point => [point.at, of(point)]) });
  const common = { x, cursorText: format.clock };
  attainment.update({ ...common, height: 130, yMax: 1, yText: share => format.percent(share, 0), valueText: share => format.percent(share), note: "share of the requests that ended in the last 10 s and met all targets; all models and classes, without batch work",
    label: "Share of requests that met all targets, over time", series: [line("attainment", "c1", point => point.ended ? point.attained / point.ended : null)] });
  for (const [figure, name, target] of [[ttft, "ttft", targets.ttft_seconds], [tpot, "tpot", targets.tpot_seconds]])
    figure.update({ ...common, height: 170, yLimit: target * 4, yText: format.seconds, valueText: format.seconds, level: { y: target, text: `${targetWords(targets)} ${format.seconds(target)}` }, note: "of the last 10 s",
      label: `${name.toUpperCase()}, median and 90th percentile over time`, series: [line("median", "c1", point => point[`${name}_p50`]), line("90th percentile", "c2", point => point[`${name}_p90`])] });
};
