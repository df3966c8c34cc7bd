// Plan: counterfactual losses of each split, the reason for the split in force, and the next switch.
const planView = { id: "plan", title: "Plan" };

planView.build = root => {
  planView.groups = el("div");
  planView.none = el("p", { class: "soft", text: "No role has changed since the start." });
  planView.journal = el("ul", { class: "flips long", tabindex: "0", "aria-label": "Role changes, latest first" });
  root.append(planView.groups, el("section", { class: "panel", "aria-labelledby": "journal" },
    el("div", { class: "row head" }, el("h2", { id: "journal", text: "Journal" }), el("span", { class: "soft small", text: "the last 100 role changes, latest first" })), planView.none, planView.journal));
};

planView.update = () => {
  const { snapshot, flips } = live, groups = snapshot.outlook.filter(group => group.splits.length);
  if (!groups.length) {
    if (!planView.empty) planView.groups.replaceChildren(planView.empty = el("div", { class: "panel" }, stateOf("No plan yet", "A split is planned once a group has two usable engines that may take either role and a first request has arrived. A single engine is mixed; pinned engines keep their role.")));
  } else {
    if (planView.empty) { planView.groups.replaceChildren(); planView.groups.keyedChildren = null; planView.empty = null; }
    keyed(planView.groups, groups, group => group.group, groupPanel, updateGroup);
  }
  const latest = flips.slice(-100).reverse();
  planView.none.hidden = latest.length > 0; planView.journal.hidden = !latest.length;
  keyed(planView.journal, latest, flip => `${flip.at} ${flip.backend} ${flip.to}`, flipItem, () => {});
};

function groupPanel(group) {
  const parts = { title: el("h2", { id: `group-${group.group}` }), why: el("p"), next: el("p", { class: "soft" }), body: el("tbody"), facts: el("dl", { class: "tiles" }) };
  const panel = el("section", { "aria-labelledby": `group-${group.group}` },
    el("div", { class: "panel" }, el("div", { class: "row head" }, parts.title), parts.why, parts.next),
    parts.facts,
    el("div", { class: "panel" }, el("div", { class: "row head" }, el("h3", { text: "Counterfactual losses of each split" }),
      el("span", { class: "soft small", text: "requests that miss a target in the counterfactual model, over the last ten minutes or so; the group switches when the regret reaches the switching cost" })),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Losses of every split" }, el("table", { class: "splits" }, headings("Split", ">Requests lost", "", ">Regret", ">Switching cost", "Regret against cost", ""), parts.body))));
  panel.parts = parts;
  return panel;
}

function updateGroup(panel, group) {
  const { title, why, next, body, facts } = panel.parts, { snapshot, flips } = live;
  const members = snapshot.fleet.backends.filter(backend => backend.group === group.group);
  const role = name => members.filter(backend => backend.role === name).length;
  const name = prefills => `${prefills} prefill + ${group.engines - prefills} decode`;
  setText(title, `${snapshot.outlook.length > 1 ? `Group ${group.group}: ` : ""}${role("prefill")} prefill and ${role("decode")} decode engines are in force`);
  const names = new Set(members.map(backend => backend.name)), last = flips.findLast(flip => names.has(flip.backend));
  setText(why, last ? `${format.clock(last.at)}, ${last.backend}: ${sentence(last.reason)}` : "The split is that of the start: half prefill, half decode, until the demand favours another.");
  const here = group.splits.find(split => split.prefill_engines === group.prefill_engines);
  const progress = split => split.switch_cost_requests ? split.regret_requests / split.switch_cost_requests : 0;
  const nearest = group.splits.filter(split => split !== here).reduce((best, split) => !best || progress(split) > progress(best) ? split : best, null);
  setText(next, !nearest || progress(nearest) < 0.01 ? "Next: no other split is better on the present demand, so no change is expected."
    : `Next: ${name(nearest.prefill_engines)} is ahead by ${format.number(nearest.regret_requests, 2)} requests of the ${format.number(nearest.switch_cost_requests, 2)} that the switch costs (${format.percent(progress(nearest), 0)}); it follows if the demand stays.`);
  const streams = members.reduce((sum, backend) => sum + backend.streams, 0);
  const items = [
    ["Arrivals", `${format.number(group.request_rate)} /s`, "mean of the demand window"],
    ["Prefill demand", `${format.number(group.prefill_load_engines, 2)} engines`, `for ${format.plural(group.prefill_engines, "prefill engine")}`],
    ["Prefill of a request", format.seconds(group.mean_prefill_seconds), "mean, on a mean engine"],
    ["Output", `${format.count(Math.round(group.output_rate))} tokens/s`, `${format.count(Math.round(group.mean_output_tokens))} tokens a request`],
    ["Engines wanted", group.engines_wanted === null ? absent : format.count(group.engines_wanted), `to lose no request of the last minutes; ${format.count(group.engines)} are in service`],
    ["Streams", format.count(streams), `${format.count(Math.round(group.expected_streams))} expected at this demand`],
  ];
  keyed(facts, items, item => item[0], item => el("div", { class: "tile" }, el("dt", { text: item[0] }), el("dd"), el("dd", { class: "note" })),
    (node, item) => { setText(node.children[1], item[1]); setText(node.children[2], item[2]); });
  const most = Math.max(1, ...group.splits.map(split => split.lost_requests));
  keyed(body, group.splits, split => split.prefill_engines, split => el("tr", {}, cell(name(split.prefill_engines), "name"), cell("", "n"), el("td", {}, meter("bad")), cell("", "n"), cell("", "n"), el("td", {}, meter("good")), cell("", "small")), (node, split) => {
    const cells = node.children, isHere = split === here;
    node.className = isHere ? "here" : "";
    setText(cells[0], name(split.prefill_engines));
    setText(cells[1], `${format.number(split.lost_requests)} requests`); setMeter(cells[2].firstChild, split.lost_requests / most);
    setText(cells[3], isHere ? absent : format.number(split.regret_requests, 2)); setText(cells[4], isHere ? absent : format.number(split.switch_cost_requests, 2));
    setMeter(cells[5].firstChild, isHere ? 0 : progress(split)); setText(cells[6], isHere ? "in force" : progress(split) >= 0.01 ? format.percent(Math.min(progress(split), 1), 0) : "");
  });
}
