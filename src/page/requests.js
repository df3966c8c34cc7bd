// Requests in flight and the last ended ones, each as a waterfall.
const requestsView = { id: "requests", title: "Requests", filters: { model: "", tenant: "", class: "", outcome: "", text: "" }, open: null, list: null, error: null };
// Of the requests in flight the latest are shown, or all if the filter selects only these.
const shownMax = 200, inFlightMax = 8, phaseNames = { queue: "queue", prefill: "prefill", handoff: "hand-off", decode: "decode", unstreamed: "not streamed" };

requestsView.build = root => {
  const view = requestsView;
  const select = (name, title) => {
    const field = el("select", { id: `f-${name}`, on: { change() { view.filters[name] = field.value; view.draw(); } } });
    view[name] = field;
    return el("label", { for: `f-${name}` }, title, field);
  };
  const text = el("input", { id: "f-text", type: "search", placeholder: "part of an id", value: view.filters.text, on: { input() { view.filters.text = text.value; view.draw(); } } });
  view.live = el("input", { id: "f-live", type: "checkbox", checked: true });
  view.summary = el("span", { class: "soft push", role: "status" });
  view.body = el("tbody");
  view.table = el("table", { class: "requests" }, headings("Arrived", "Request", "Model", "Key", "Outcome", ">Prompt", ">Output", "Waterfall", ">TTFT", ">Total"), view.body);
  view.state = el("div");
  view.scroll = el("div", { class: "panel scroll", tabindex: "0", role: "region", "aria-label": "Requests" }, view.table);
  root.append(el("div", { class: "row head" }, el("h2", { text: "Requests" }),
    el("span", { class: "keys" }, Object.entries(phaseNames).map(([phase, name]) => el("span", {}, el("i", { class: `p-${phase}` }), name)))),
  el("div", { class: "filters" }, select("model", "Model"), select("tenant", "Key"), view.classLabel = select("class", "Class"), select("outcome", "Outcome"),
    el("label", { for: "f-text" }, "Request id", text), el("span", {}, view.live, el("label", { class: "inline", for: "f-live", text: " live" })), view.summary), view.state, view.scroll);
};

requestsView.update = async () => {
  const view = requestsView;
  if (view.loading || (view.list && !view.live.checked)) return;
  view.loading = true;
  try { view.list = await read(`v1/requests?ended=${shownMax}`); view.error = null; } catch (error) { view.error = error.message; } finally { view.loading = false; }
  view.draw();
};

const outcomeOf = request => request.ended ? { done: "done", client_left: "client left", failed: "failed", cut: "cut" }[request.ended] || request.ended : "in flight";

requestsView.draw = () => {
  const view = requestsView, list = view.list || [], filters = view.filters;
  fillSelect(view.model, "all models", list.map(request => request.model), filters.model);
  fillSelect(view.tenant, "all keys", list.map(request => request.tenant), filters.tenant);
  fillSelect(view.class, "all classes", list.map(request => request.class), filters.class);
  view.classLabel.hidden = !filters.class && new Set(list.map(request => request.class).filter(Boolean)).size < 2;
  fillSelect(view.outcome, "all outcomes", list.map(outcomeOf), filters.outcome);
  const matches = list.filter(request => (!filters.model || request.model === filters.model) && (!filters.tenant || request.tenant === filters.tenant) && (!filters.class || request.class === filters.class)
    && (!filters.outcome || outcomeOf(request) === filters.outcome) && (!filters.text || request.request_id.includes(filters.text)));
  const inFlight = matches.filter(request => !request.ended).reverse(), ended = matches.filter(request => request.ended);
  const shown = inFlight.slice(0, filters.outcome === "in flight" ? shownMax : inFlightMax).concat(ended).slice(0, shownMax);
  setText(view.summary, view.list ? `${format.count(inFlight.length)} in flight, ${format.count(ended.length)} ended; ${shown.length} shown` : "");
  const empty = view.error ? ["The requests cannot be read", view.error] : !view.list ? ["Reading the requests", "…"] : !list.length ? ["No request yet", "Requests appear here as soon as one arrives at the data address."] : !shown.length ? ["No request matches", "Change or clear the filters."] : null;
  view.scroll.hidden = Boolean(empty);
  view.state.replaceChildren(...(empty ? [stateOf(...empty)] : []));
  const rows = shown.flatMap(request => view.open === request.id ? [request, { detail: request }] : [request]);
  keyed(view.body, rows, row => row.detail ? `detail ${row.detail.id}` : row.id, row => row.detail ? el("tr", { class: "detail" }, el("td", { colspan: "10" })) : requestRow(row),
    (node, row) => row.detail ? drawDetail(node.firstChild, row.detail) : updateRow(node, row));
};

function fillSelect(field, all, values, chosen) {
  const names = [...new Set(values.filter(Boolean))].sort(), key = names.join("\n");
  if (field.dataset.names === key) return;
  field.dataset.names = key;
  field.replaceChildren(el("option", { value: "", text: all }), ...names.map(value => el("option", { value, text: value, selected: value === chosen })));
}

function requestRow(request) {
  const toggle = el("button", { type: "button", class: "link mono", "aria-expanded": "false", text: request.request_id.length > 13 ? `${request.request_id.slice(0, 12)}…` : request.request_id,
    title: request.request_id, on: { click() { requestsView.open = requestsView.open === request.id ? null : request.id;
    // The order of rows is frozen while one is open.
    requestsView.live.checked = requestsView.open === null; requestsView.draw(); } } });
  return el("tr", {}, cell("", "soft"), el("td", {}, toggle), cell(request.model || absent), cell(request.tenant || absent), el("td"), cell("", "n"), cell("", "n"), el("td", {}, el("div", { class: "fall", role: "img" })), cell("", "n"), cell("", "n"));
}

function updateRow(row, request) {
  const cells = row.children, now = live.snapshot?.at || Date.now() / 1000;
  row.querySelector("button").setAttribute("aria-expanded", String(requestsView.open === request.id));
  setText(cells[0], format.clock(request.arrived_at ?? now - request.age_seconds));
  const outcome = request.ended ? outcomeOf(request) : { queued: "in the queue", prefill: "prefill", handover: "hand-off", waiting: "prefill", streaming: "streaming" }[request.stage];
  setText(cells[4], request.ended && request.ended !== "done" && request.status ? `${outcome} (${request.status})` : outcome);
  cells[4].className = !request.ended ? "soft" : request.ended === "done" ? "good" : request.ended === "client_left" ? "warn" : "bad";
  setText(cells[5], format.count(request.prompt_tokens)); setText(cells[6], format.count(request.output_tokens));
  const ttft = request.observed?.ttft_seconds, missed = ttft > (request.targets?.ttft_seconds ?? Infinity);
  setText(cells[8], `${format.seconds(ttft)}${missed ? " ▲" : ""}`);
  cells[8].className = missed ? "n bad" : "n";
  setText(cells[9], format.seconds(request.duration_seconds ?? request.age_seconds));
  drawFall(cells[7].firstChild, request);
}

/** The phases as shares of the request's own duration. */
function drawFall(bar, request) {
  const phases = request.phases || [{ name: { queued: "queue", prefill: "prefill", waiting: "prefill", handover: "handoff", streaming: "decode" }[request.stage], seconds: request.age_seconds }], total = phases.reduce((sum, phase) => sum + phase.seconds, 0) || 1;
  bar.setAttribute("aria-label", request.ended ? phases.map(phase => `${phaseNames[phase.name]} ${format.seconds(phase.seconds)}`).join(", ") : `now ${phaseNames[phases[0].name]}`);
  bar.className = request.ended ? "fall" : "fall open";
  keyed(bar, phases, phase => phase.name, phase => el("i", { class: `p-${phase.name}` }), (node, phase) => { node.style.width = `${phase.seconds / total * 100}%`; });
}

function drawDetail(place, request) {
  if (place.dataset.drawn === `${request.ended}`) return;
  place.dataset.drawn = `${request.ended}`;
  if (!request.ended) { place.replaceChildren(el("p", { class: "soft", text: `${request.request_id} is in flight on ${[request.prefill_backend, request.backend].filter(Boolean).join(" and ") || "no engine yet"}; its waterfall is available at the end.` })); return; }
  const total = request.duration_seconds || 1, { predicted, observed, targets } = request;
  const bars = el("div", { class: "bars" }, request.phases.flatMap(phase => {
    const bar = el("div", { class: "fall", "aria-hidden": "true" }, el("i"), el("i", { class: `p-${phase.name}` }));
    bar.children[0].style.width = `${phase.start_seconds / total * 100}%`; bar.children[1].style.width = `${Math.max(phase.seconds / total * 100, 0.4)}%`;
    return [el("span", { text: phaseNames[phase.name] }), bar, el("span", { class: "n", text: `${format.seconds(phase.seconds)}${phase.backend ? ` on ${phase.backend}` : ""}` })];
  }));
  const row = (name, ahead, seen, target, form = format.seconds) => el("tr", {}, el("th", { scope: "row", text: name }), cell(form(ahead), "n"), cell(form(seen), "n"), cell(target === undefined ? "" : form(target), "n"));
  const figures = el("table", {}, headings("", ">predicted", ">observed", ">target"), el("tbody", {},
    row("queue", undefined, observed.queued_seconds), row("prefill", predicted.prefill_seconds, observed.prefill_seconds), row("cached tokens", predicted.cached_tokens, observed.cached_tokens, undefined, format.count),
    row("TTFT", predicted.ttft_seconds, observed.ttft_seconds, targets.ttft_seconds ?? undefined), row("TPOT", predicted.tpot_seconds, observed.tpot_seconds, targets.tpot_seconds ?? undefined), row("largest gap", undefined, observed.gap_max_seconds, targets.itl_seconds ?? undefined)));
  const candidates = el("table", {}, headings("Candidate", "Role", ">backlog", ">streams", ">cached", ">end of prefill", ""), el("tbody", {}, request.candidates.map(each => el("tr", { class: each.chosen ? "here" : null },
    cell(each.backend), el("td", {}, chip(each.role)), cell(format.seconds(each.backlog_seconds), "n"), cell(format.count(each.streams), "n"), cell(format.count(each.cached_tokens), "n"), cell(`after ${format.seconds(each.prefill_end_seconds)}`, "n"), cell(each.chosen ? "chosen" : each.open ? "" : "no capacity")))));
  place.replaceChildren(...[el("p", {}, el("span", { class: "mono", text: request.request_id }), el("span", { class: "soft", text: ` · ${request.endpoint} · class ${request.class} · ${format.plural(request.attempts, "attempt")}` })),
    request.problem ? el("p", { class: "bad", text: request.problem }) : null, el("p", { text: request.choice }), bars,
    el("div", { class: "split2" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Predicted and observed" }, figures), request.candidates.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Candidates" }, candidates) : null)].filter(Boolean));
}
