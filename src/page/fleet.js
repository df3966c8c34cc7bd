// Fleet: engine time on prefill and on decode over time, flips, and every engine with its load.
const fleetView = { id: "fleet", title: "Fleet", minutes: 5 };

fleetView.build = root => {
  const view = fleetView;
  view.tiles = el("dl", { class: "tiles" });
  view.tides = chart("Engine time");
  const ranges = [["2", "2 min"], ["5", "5 min"], ["15", "15 min"]];
  const range = el("select", { id: "range", on: { change() { view.minutes = +range.value; view.update(); } } },
    ranges.map(([value, text]) => el("option", { value, text, selected: +value === view.minutes })));
  view.flips = el("ul", { class: "flips", tabindex: "0", "aria-label": "Role changes, latest first" });
  view.noFlips = el("p", { class: "soft", text: "No role has changed since the start." });
  view.engines = el("ul", { class: "engines" });
  view.count = el("span", { class: "soft" });
  view.headline = el("p", { class: "headline" });
  root.append(view.headline, view.tiles,
    el("section", { class: "panel", "aria-labelledby": "tides" },
      el("div", { class: "row head" }, el("h2", { id: "tides", text: "Prefill and decode" }),
        el("span", { class: "soft small", text: "prefill fills from the top, decode from the bottom, the gap is idle; the line divides the two pools; ▼ a flip" }),
        el("label", { class: "push soft small", for: "range", text: "Last " }, range)),
      view.tides.figure),
    el("section", { class: "panel", "aria-labelledby": "flips" },
      el("div", { class: "row head" }, el("h2", { id: "flips", text: "Role changes" })), view.noFlips, view.flips),
    el("section", { "aria-labelledby": "engines" },
      el("div", { class: "row head" }, el("h2", { id: "engines", text: "Engines" }), view.count), view.engines));
};

fleetView.update = () => {
  const { snapshot, points, flips } = live, { fleet, targets } = snapshot, view = fleetView;
  updateHeadline(view.headline);
  updateTiles(view.tiles, snapshot, points);
  const now = snapshot.at, total = fleet.backends.length;
  const from = Math.max(now - view.minutes * 60, Math.min(points[0]?.at ?? now, now - 60));
  const shown = points.filter(point => point.at >= from - 1);
  const last = shown.at(-1) || { prefill_engines: 0, decode_engines: 0 };
  view.tides.update({
    height: 220, x: [from, now], yMax: Math.max(total, 1), yText: value => format.number(value, 0),
    label: `Engine time of ${format.plural(total, "engine")}: ${format.number(last.prefill_engines)} on prefill, ${format.number(last.decode_engines)} on decode now`,
    yTicks: ticksOf(0, total, Math.min(total, 4)).filter(Number.isInteger),
    note: `${format.number(last.prefill_engines)} engines on prefill, ${format.number(last.decode_engines)} on decode, ${format.number(Math.max(0, total - last.prefill_engines - last.decode_engines))} idle`,
    cursorText: format.clock, valueText: value => format.number(value),
    series: [
      { name: "prefill", style: "prefill", kind: "band", points: smooth(shown, "prefill_engines").map(([x, y]) => [x, total - y, total]) },
      { name: "decode", style: "decode", kind: "band", points: smooth(shown, "decode_engines").map(([x, y]) => [x, 0, y]) },
      { name: "border of the pools", style: "ink", kind: "step", quiet: true, points: shown.map(point => [point.at, point.roles[1] + point.roles[2] / 2]) },
    ],
    marks: flips.filter(flip => flip.at >= from).map(flip => ({ x: flip.at, text: `${flip.backend}: ${flip.from} → ${flip.to}` })),
  });
  const latest = flips.slice(-30).reverse();
  view.noFlips.hidden = latest.length > 0; view.flips.hidden = !latest.length;
  keyed(view.flips, latest, flip => `${flip.at} ${flip.backend} ${flip.to}`, flipItem, () => {});
  const roles = ["prefill", "decode", "mixed", "draining"].map(role => [role, fleet.backends.filter(backend => backend.role === role).length]);
  setText(view.count, roles.filter(([, count]) => count).map(([role, count]) => `${count} ${role}`).join(", "));
  keyed(view.engines, fleet.backends, backend => backend.name, engineCard, updateEngine);
};

const flipItem = flip => el("li", {}, el("span", { class: "soft", text: format.clock(flip.at) }), el("strong", { text: flip.backend }),
  el("span", {}, chip(flip.from), " → ", chip(flip.to)), el("span", { class: "soft", text: sentence(flip.reason) }));
const sentence = text => text ? text[0].toUpperCase() + text.slice(1) + "." : "";

/** Mean over three seconds: one second of ten samples is noisy. */
function smooth(points, name) {
  return points.map((point, place) => {
    const near = points.slice(Math.max(0, place - 1), place + 2);
    return [point.at, near.reduce((sum, each) => sum + each[name], 0) / near.length];
  });
}

/** A class may have targets of its own, which the figures of all requests are not compared with. */
const targetWords = targets => targets.models.some(model => model.class !== "default") ? "default target" : "target";

function updateTiles(tiles, { fleet, targets, outlook }, points) {
  const recent = points.slice(-10), last = points.at(-1);
  const ended = last?.ended || 0, arrived = recent.reduce((sum, point) => sum + point.arrived, 0) / Math.max(recent.length, 1);
  const total = fleet.backends.length, used = last ? last.prefill_engines + last.decode_engines : 0;
  const over = (value, target) => value === null || value === undefined ? "no request ended" : `${targetWords(targets)} ${format.seconds(target)}${value > target ? ", missed" : ", met"}`;
  const items = [
    ["Attainment, last 10 s", ended ? format.percent(last.attained / ended) : absent, ended ? `${last.attained} of ${format.plural(ended, "request")}` : "no request ended"],
    ["TTFT, p90", format.seconds(last?.ttft_p90), over(last?.ttft_p90, targets.ttft_seconds)],
    ["TPOT, p90", format.seconds(last?.tpot_p90), over(last?.tpot_p90, targets.tpot_seconds)],
    ["Arrivals", `${format.number(arrived)} /s`, "mean of 10 s"],
    ["In flight", format.count(fleet.live_requests), `${format.count(fleet.waiting_requests)} in the queue`],
    ["Engines at work", `${format.number(used)} of ${total}`, `${fleet.backends.filter(backend => backend.health === "up").length} up`],
  ];
  keyed(tiles, items, item => item[0], item => el("div", { class: "tile" }, el("dt", { text: item[0] }), el("dd"), el("dd", { class: "note" })),
    (node, item) => { setText(node.children[1], item[1]); setText(node.children[2], item[2]); node.children[2].className = item[2].endsWith("missed") ? "note bad" : "note"; });
}

function engineCard(backend) {
  const part = (name, kind) => { const bar = meter(kind), value = el("dd", { class: "n" }); return { nodes: [el("dt", { text: name }), el("dd", {}, bar), value], bar, value }; };
  const prefill = part("prefill backlog", "prefill"), streams = part("streams", "decode"), kv = part("KV tokens", "");
  const role = el("span"), health = el("span", { class: "small" }), hold = el("span", { class: "small soft" }), facts = el("dl", { class: "facts" });
  const findings = el("div", { class: "small warn" });
  const change = el("button", { type: "button", class: "small push", "aria-label": `Change role of ${backend.name}`, text: "Change", on: { click: () => openRoleDialog(backend.name) } });
  const card = el("li", { class: "engine" },
    el("div", { class: "row" }, el("h3", { text: backend.name }), role, health, hold, change),
    el("dl", { class: "loads" }, prefill.nodes, streams.nodes, kv.nodes), findings,
    el("details", {}, el("summary", { text: "Costs and identity" }), facts));
  card.parts = { role, health, hold, prefill, streams, kv, facts, findings };
  return card;
}

function updateEngine(card, backend) {
  const { role, health, hold, prefill, streams, kv, facts, findings } = card.parts, costs = backend.costs;
  card.className = `engine ${backend.role}`;
  if (role.dataset.role !== backend.role) { role.dataset.role = backend.role; role.replaceChildren(chip(backend.role)); }
  setText(hold, backend.pinned ? "pinned" : backend.held_seconds ? `held for ${format.seconds(backend.held_seconds)}` : "");
  const up = backend.health === "up";
  setText(health, up ? "up" : [backend.health.replace("_", " "), backend.health_reason].filter(Boolean).join(": "));
  health.className = up ? "small good" : "small bad";
  setMeter(prefill.bar, backend.prefill_seconds / (live.snapshot.targets.ttft_seconds || 1));
  setText(prefill.value, backend.prefill_legs ? `${format.seconds(backend.prefill_seconds)}, ${format.plural(backend.prefill_legs, "prompt")}` : "none");
  setMeter(streams.bar, backend.streams / backend.streams_max);
  setText(streams.value, `${backend.streams} of ${backend.streams_max}`);
  const share = backend.kv_capacity_tokens ? backend.kv_tokens / backend.kv_capacity_tokens : null;
  setMeter(kv.bar, share);
  setText(kv.value, `${share === null ? format.count(backend.kv_tokens) : `${format.percent(share, 0)} of ${format.count(backend.kv_capacity_tokens)}`}`);
  const notes = [...backend.misfits, ...backend.alerts.map(alert => `engine alert: ${alert.replaceAll("_", " ")}`)];
  keyed(findings, notes, note => note, note => el("p", { text: `⚠ ${note}` }), () => {});
  const rows = [
    ["prefill", `${format.seconds(costs.prefill_token_seconds)} a token, ${format.seconds(costs.prefill_base_seconds)} a step`],
    ["attention", `${format.seconds(costs.prefill_attention_seconds * 1e6)} per million token pairs`],
    ["decode step", `${format.seconds(costs.decode_base_seconds)}, ${format.seconds(costs.decode_stream_seconds)} a stream, ${format.seconds(costs.decode_kv_token_seconds * 1000)} per 1,000 KV tokens`],
    ["hand-off", `${format.seconds(costs.hand_off_base_seconds)}, ${format.seconds(costs.hand_off_token_seconds * 1000)} per 1,000 tokens`],
    ["prefix hits", `${format.percent(backend.prefix_hit_share, 0)} of the predicted hits are real`],
    ["engine", `${backend.engine} ${backend.version || "of unknown version"}, group ${backend.group}`],
    ["address", backend.url],
  ];
  keyed(facts, rows.flatMap(([name, text]) => [{ name, tag: "dt", text: name }, { name, tag: "dd", text }]), row => row.tag + row.name, row => el(row.tag), (node, row) => setText(node, row.text));
}

/** Opens the dialog for role and duration. It shows the consequence before a request is sent. */
function openRoleDialog(name) {
  const backend = live.snapshot.fleet.backends.find(backend => backend.name === name);
  const dialog = document.getElementById("role-dialog"), consequence = el("p", { class: "consequence", role: "status" }), error = el("p", { class: "bad", role: "alert" });
  const radio = (group, value, text, checked) => el("label", { class: "choice" }, el("input", { type: "radio", name: group, value, checked, on: { change: show } }), text);
  const holds = [["default", "until the usual hold ends (admin.flip_hold_seconds)"], ["3600", "for one hour"], ["86400", "for one day"], ["pin", "until it is released (pin)"]];
  const apply = el("button", { class: "primary", text: "Confirm" });
  const held = backend.pinned || backend.held_seconds;
  const choice = group => dialog.querySelector(`input[name=${group}]:checked`)?.value;
  function show() {
    const role = choice("role"), hold = choice("hold");
    const peers = live.snapshot.fleet.backends.filter(peer => peer.name !== name && peer.group === backend.group);
    const left = peers.some(peer => peer.role === backend.role || peer.role === "mixed");
    const words = [role === backend.role ? `${name} keeps the role ${role}` : `${name} changes from ${backend.role} to ${role} for new work at once; its current work (${format.plural(backend.streams, "stream")}, ${format.plural(backend.prefill_legs, "prompt")}) finishes there`,
      hold === "pin" ? "the planner does not change it until it is released" : "then the planner resumes control"];
    if (role !== backend.role && !left && ["prefill", "decode"].includes(backend.role)) words.push(`its group has no other ${backend.role} engine`);
    consequence.textContent = words.join("; ") + ".";
  }
  async function submit(body) {
    apply.disabled = true; error.textContent = "";
    try { await post(`v1/backends/${encodeURIComponent(name)}/role`, body); dialog.close(); } catch (problem) { error.textContent = `Refused: ${problem.message}`; apply.disabled = false; }
  }
  const form = el("form", { on: { submit(event) {
    event.preventDefault();
    const hold = choice("hold"), body = { role: choice("role") };
    if (hold === "pin") body.pin = true; else if (hold !== "default") body.hold_seconds = +hold;
    submit(body);
  } } },
  el("h2", { id: "role-title", text: `Role of ${name}` }),
  el("fieldset", {}, el("legend", { text: "Role" }), backend.allowed.concat(backend.allowed.includes("draining") ? [] : ["draining"]).map(role => radio("role", role, role === "draining" ? "draining: no new work" : role, role === backend.role))),
  el("fieldset", {}, el("legend", { text: "How long" }), holds.map(([value, text], place) => radio("hold", value, text, place === 0))),
  consequence, error,
  el("div", { class: "buttons" },
    held ? el("button", { type: "button", text: "Release to the planner", on: { click: () => submit({ pin: false }) } }) : null,
    el("button", { type: "button", text: "Cancel", on: { click: () => dialog.close() } }), apply));
  dialog.replaceChildren(form); show(); dialog.showModal();
}
