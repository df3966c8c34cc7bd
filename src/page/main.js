// Navigation, theme, connection state; starts the dashboard.
const views = [fleetView, requestsView, planView, targetsView, whatIfView];
let shown = null;

function show() {
  const wanted = views.find(view => `#${view.id}` === location.hash) || fleetView;
  for (const link of document.querySelectorAll("#nav a")) link.toggleAttribute("aria-current", link.hash === `#${wanted.id}`);
  for (const link of document.querySelectorAll("#nav a[aria-current]")) link.setAttribute("aria-current", "page");
  if (shown === wanted) return;
  const first = !shown;
  shown = wanted;
  document.title = `${wanted.title} – tidegate`;
  const main = document.getElementById("view");
  main.replaceChildren();
  main.built = false;
  if (!first) main.focus({ preventScroll: true });
  scrollTo(0, 0);
  draw();
}

function draw() {
  const main = document.getElementById("view"), { state, error, snapshot, since } = live;
  const status = document.getElementById("status"), banner = document.getElementById("banner");
  if (!status.firstChild) status.append(el("span", { class: "dot", "aria-hidden": "true" }), el("span"));
  const ready = state === "live" && snapshot.fleet.ready;
  status.firstChild.className = ready ? "dot on" : "dot";
  setText(status.lastChild, state === "live" ? `${ready ? "ready" : "not ready"}, plan ${format.count(snapshot.fleet.plan)}` : state === "lost" ? "disconnected" : "connecting");
  banner.hidden = !(state === "lost" && snapshot);
  if (!banner.hidden) setText(banner, `No connection to the proxy (${error}). The figures are those of ${format.clock(since)}; trying again.`);
  if (!snapshot) {
    const text = state === "lost" ? ["No connection to the proxy", `${error}. Reconnecting.`] : ["Connecting", "…"];
    if (main.textContent !== text.join("")) main.replaceChildren(stateOf(...text));
    return;
  }
  if (!main.built) { main.replaceChildren(); shown.empty = null; shown.build(main); main.built = true; shown.update(); }
  else if (state === "live") shown.update();
}

function theme() {
  const button = document.getElementById("theme"), names = ["auto", "light", "dark"];
  let now = "auto";
  try { now = localStorage.getItem("tidegate-theme") || "auto"; } catch { /* Storage is off: the system's theme. */ }
  const apply = () => {
    if (now === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = now;
    button.textContent = `Theme: ${now}`;
  };
  button.addEventListener("click", () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    try { localStorage.setItem("tidegate-theme", now); } catch { /* It lasts as long as the page. */ }
    apply();
  });
  apply();
}

document.getElementById("nav").append(...views.map(view => el("a", { href: `#${view.id}`, text: view.title })));
theme();
live.listeners.push(draw);
addEventListener("hashchange", show);
show();
connect();
