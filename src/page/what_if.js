// What if: the arrivals of the last hour, simulated with other fleets, targets and policies.
const whatIfView = { id: "what-if", title: "What if", answer: null, error: null, running: false };
const policyNames = [["tidegate", "tidegate (roles follow the demand)", true], ["static:best", "best fixed split (in hindsight)", true], ["aggregated", "aggregated: every engine does both", true],
  ["interval:30", "controller that plans every 30 s", false], ["dynamo_kv", "KV-aware router, aggregated", false]];
const policyName = name => policyNames.find(policy => policy[0] === name)?.[1].split(/[:(]/)[0].trim() || name;

whatIfView.build = root => {
  const view = whatIfView;
  // The form and its result are kept while another view is shown.
  if (view.form) return root.append(view.form, view.result);
  const number = (name, title, unit, attributes) => { const field = el("input", { id: `w-${name}`, type: "number", ...attributes }); view[name] = field; return el("label", { class: "field", for: `w-${name}` }, `${title}, ${unit}`, field); };
  view.fleets = el("input", { id: "w-fleets", type: "text", size: "12", inputmode: "numeric" });
  view.run = el("button", { class: "primary", text: "Simulate" });
  view.form = el("form", { class: "panel", on: { submit(event) { event.preventDefault(); simulateNow(); } } },
    el("div", { class: "row head" }, el("h2", { text: "What if" }), el("span", { class: "soft small", text: "the requests of the last hour, on the engine model with the learned costs" })),
    el("div", { class: "filters" }, el("label", { class: "field", for: "w-fleets" }, "Engines, one or more numbers", view.fleets),
      number("ttft", "TTFT target", "s", { min: "0.01", step: "any", size: "6" }), number("tpot", "TPOT target", "ms", { min: "0.1", step: "any", size: "6" }), number("rate", "Arrival rate", "times the real one", { min: "0.1", max: "10", step: "any", value: "1" }), view.run),
    el("fieldset", { class: "row small" }, el("legend", { class: "soft", text: "Policies" }), policyNames.map(([value, text, checked]) => el("label", {}, el("input", { type: "checkbox", name: "policy", value, checked }), ` ${text}`))));
  view.result = el("div", { "aria-live": "polite" });
  root.append(view.form, view.result);
};

whatIfView.update = () => {
  const view = whatIfView, { fleet, targets } = live.snapshot;
  if (!view.filled) {
    view.filled = true;
    const now = fleet.backends.filter(backend => backend.role !== "draining").length || 1;
    view.fleets.value = [...new Set([Math.max(1, now - 2), now, now + 2])].join(", ");
    view.ttft.value = targets.ttft_seconds; view.tpot.value = +(targets.tpot_seconds * 1000).toPrecision(4);
  }
  drawWhatIf();
};

async function simulateNow() {
  const view = whatIfView;
  const question = {
    engines: view.fleets.value.split(/[^0-9]+/).filter(Boolean).map(Number), ttft_seconds: +view.ttft.value, tpot_seconds: +view.tpot.value / 1000, rate: +view.rate.value,
    policies: [...view.form.querySelectorAll("input[name=policy]:checked")].map(box => box.value),
  };
  Object.assign(view, { running: true, error: null, drawn: null });
  drawWhatIf();
  try { view.answer = await post("v1/what-if", question); } catch (error) { view.error = error.message; } finally { view.running = false; view.drawn = null; }
  drawWhatIf();
}

function drawWhatIf() {
  const view = whatIfView, now = view.running ? "running" : view.error ? "error" : view.answer ? "answer" : "empty";
  view.run.disabled = view.running;
  if (view.drawn === now) return;
  view.drawn = now;
  const panel = (...children) => view.result.replaceChildren(el("div", { class: "panel" }, children));
  if (now === "running") return panel(stateOf("Simulating …", "At most 20 seconds."));
  if (now === "error") return panel(stateOf("No result", view.error));
  if (now === "empty") return panel(stateOf("No simulation yet", "Choose fleets, targets and policies, then simulate. The running fleet does not change."));
  const { answer } = view, best = Math.max(...answer.outcomes.map(outcome => outcome.attainment));
  const figure = chart("Attainment by fleet size");
  const policies = [...new Set(answer.outcomes.map(outcome => outcome.policy))], sizes = [...new Set(answer.outcomes.map(outcome => outcome.engines))];
  const rows = answer.outcomes.map(outcome => {
    const bar = meter(outcome.attainment >= 0.9 ? "good" : "bad");
    setMeter(bar, outcome.attainment);
    return el("tr", { class: outcome.attainment === best ? "here" : null }, cell(format.count(outcome.engines), "n"), cell(`${policyName(outcome.policy)}${outcome.split ? ` (${outcome.split} prefill + ${outcome.engines - outcome.split} decode)` : ""}`),
      cell(format.percent(outcome.attainment), "n"), el("td", {}, bar), cell(format.percent(outcome.ttft_attainment), "n"), cell(format.percent(outcome.tpot_attainment), "n"),
      cell(format.seconds(outcome.ttft_p50_seconds), "n"), cell(format.seconds(outcome.ttft_p99_seconds), "n"), cell(format.seconds(outcome.tpot_p50_seconds), "n"), cell(format.seconds(outcome.tpot_p99_seconds), "n"),
      cell(format.seconds(outcome.itl_p99_seconds), "n"), cell(format.seconds(outcome.itl_max_seconds), "n"), cell(format.count(outcome.flips), "n"));
  });
  panel(el("div", { class: "row head" }, el("h2", { text: "Result" }), el("span", { class: "soft small", text: `${format.plural(answer.arrivals, "request")} over ${format.seconds(answer.trace_seconds)}, at ${format.number(answer.rate)} times their rate; targets: TTFT ${format.seconds(answer.ttft_seconds)}, TPOT ${format.seconds(answer.tpot_seconds)}` })),
    summaryOf(answer), answer.left_out ? el("p", { class: "warn", text: `${format.plural(answer.left_out, "combination")} left out: the time limit was reached.` }) : null, sizes.length > 1 ? figure.figure : null,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Results" }, el("table", {}, headings(">Engines", "Policy", ">Attainment", "", ">TTFT met", ">TPOT met", ">TTFT p50", ">p99", ">TPOT p50", ">p99", ">ITL p99", ">Largest gap", ">Flips"), el("tbody", {}, rows))));
  if (sizes.length > 1) figure.update({ height: 170, time: false, xTicks: sizes, x: [Math.min(...sizes) - 0.3, Math.max(...sizes) + 0.3], xText: size => format.plural(Math.round(size), "engine"), yMax: 1, yText: share => format.percent(share, 0), valueText: share => format.percent(share),
    level: { y: 0.9, text: "90 %" }, label: "Attainment of each policy by fleet size", series: policies.map((policy, place) => ({ name: policyName(policy), style: `c${place % 6 + 1}`, kind: "dots", points: answer.outcomes.filter(outcome => outcome.policy === policy).map(outcome => [outcome.engines, outcome.attainment]) })) });
}

/** The smallest fleet of each policy that reaches 90 %. */
function summaryOf(answer) {
  const policies = [...new Set(answer.outcomes.map(outcome => outcome.policy))];
  const words = policies.map(policy => {
    const enough = answer.outcomes.filter(outcome => outcome.policy === policy && outcome.attainment >= 0.9).map(outcome => outcome.engines);
    return `${policyName(policy)} ${enough.length ? `with ${format.plural(Math.min(...enough), "engine")}` : "with none of these fleets"}`;
  });
  return el("p", { text: `An attainment of 90 % is reached by ${words.join("; by ")}.` });
}
