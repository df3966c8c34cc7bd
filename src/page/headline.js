// The state of the fleet in sentences: first what is wrong, or that nothing is, then what explains it.

/** An attainment below this share is a problem. */
const attainmentGood = 0.9;
/** Role changes of this age in seconds are named. */
const flipRecent = 60;

/** Engines that do not serve, and engines with a misfit or an alert. */
function troubled(backends) {
  const down = backends.filter(backend => backend.health !== "up"), noted = backends.filter(backend => backend.health === "up" && (backend.misfits.length || backend.alerts.length));
  const names = list => `${list.slice(0, 3).map(backend => backend.name).join(", ")}${list.length > 3 ? ` and ${list.length - 3} more` : ""}`;
  return [down.length ? `${down.length} of ${format.plural(backends.length, "engine")} not up: ${names(down)}.` : null, noted.length ? `${format.plural(noted.length, "engine")} with a warning: ${names(noted)}.` : null].filter(Boolean);
}

/** Returns level (good, warn, bad or soft), the leading sentence and the sentences that follow it. */
function headlineOf({ snapshot: { fleet, outlook, at }, points, flips }) {
  const { backends } = fleet, up = backends.filter(backend => backend.health === "up").length, last = points.at(-1), problems = troubled(backends), more = [];
  const ended = last?.ended || 0, share = ended ? last.attained / ended : null, waiting = fleet.waiting_requests;
  const busy = last ? last.prefill_engines + last.decode_engines : 0, full = up > 0 && busy > 0.95 * up;
  if (full) more.push(`All ${format.plural(up, "engine")} are busy${waiting ? `, ${format.plural(waiting, "request")} in the queue` : ""}.`);
  const wanted = outlook.reduce((sum, group) => sum + (group.engines_wanted || 0), 0), here = outlook.reduce((sum, group) => sum + (group.engines_wanted ? group.engines : 0), 0);
  if (wanted > here) more.push(`The demand of the last minutes needs ${format.plural(wanted, "engine")}, ${here} in service.`);
  const flip = flips.at(-1);
  if (flip && at - flip.at < flipRecent) more.push(`${flip.backend} became ${flip.to} ${Math.max(1, Math.round(at - flip.at))} s ago.`);
  if (fleet.other_gateways) more.push(`${format.plural(fleet.other_gateways, "other gateway")} ${fleet.other_gateways === 1 ? "shares" : "share"} these engines.`);
  const met = share === null ? null : `${share < attainmentGood ? "Only " : ""}${format.percent(share, 0)} of the requests of the last 10 s met their targets.`;
  if (!backends.length) return { level: "warn", lead: "No engine is known.", more };
  if (!up) return { level: "bad", lead: "No engine is up.", more };
  if (share !== null && share < attainmentGood) return { level: "bad", lead: met, more: [...problems, ...more] };
  if (problems.length) return { level: "warn", lead: problems[0], more: [...problems.slice(1), met, ...more].filter(Boolean) };
  if (share !== null) return { level: "good", lead: met, more };
  return { level: "soft", lead: fleet.live_requests ? "No request ended in the last 10 s." : "No requests at present.", more };
}

function updateHeadline(node) {
  const { level, lead, more } = headlineOf(live);
  if (!node.firstChild) node.append(el("strong"), " ", el("span", { class: "soft" }));
  node.className = `headline ${level}`;
  setText(node.firstChild, lead); setText(node.lastChild, more.join(" "));
}
