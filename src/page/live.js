// The connection to the admin address: snapshots as server-sent events, history before them, and
// single requests. `fetch` instead of EventSource, which cannot send the token.
const live = { state: "connecting", since: null, error: null, snapshot: null, points: [], flips: [], listeners: [] };
const pointsMax = 900, flipsMax = 2000, tokenName = "tidegate-admin-token";
let tokenDialogOpen = null;

const readToken = () => { try { return sessionStorage.getItem(tokenName); } catch { return null; } };
const keepToken = token => { try { sessionStorage.setItem(tokenName, token); } catch { /* The dialog opens again after a reload. */ } };

/** Sends a request with the token and returns its answer; an error contains the server's message. */
async function send(path, options = {}) {
  const headers = { ...options.headers }, token = readToken();
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { cache: "no-store", ...options, headers });
  if (answer.status === 401) { openTokenDialog(Boolean(token)); throw new Error("the admin address needs its token"); }
  if (!answer.ok) {
    const text = await answer.text();
    let why = text;
    try { why = JSON.parse(text).error || text; } catch { /* Not JSON: the text itself. */ }
    throw new Error(why || `status ${answer.status}`);
  }
  return answer;
}
const read = async path => (await send(path)).json();
const post = async (path, body) => (await send(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

function notify() { for (const listener of live.listeners) listener(); }

function addFlips(entries) {
  const key = flip => `${flip.at} ${flip.backend} ${flip.to}`, known = new Set(live.flips.map(key));
  for (const flip of entries) if (!known.has(key(flip))) live.flips.push(flip);
  live.flips.sort((a, b) => a.at - b.at);
  live.flips.splice(0, live.flips.length - flipsMax);
}

function takeSnapshot(snapshot) {
  const last = live.points.at(-1);
  if (snapshot.point && (!last || snapshot.point.at > last.at)) live.points.push(snapshot.point);
  live.points.splice(0, live.points.length - pointsMax);
  addFlips(snapshot.flips);
  Object.assign(live, { snapshot, state: "live", since: snapshot.at, error: null });
  notify();
}

async function connect() {
  for (let wait = 1000; ; wait = Math.min(wait * 2, 10000)) {
    try {
      const [points, flips] = await Promise.all([read("v1/history"), read("v1/plan/history")]);
      live.points = points; addFlips(flips);
      const stream = (await send("v1/events")).body.pipeThrough(new TextDecoderStream()).getReader();
      for (let buffer = ""; ;) {
        const { value, done } = await stream.read();
        if (done) throw new Error("the connection was closed");
        buffer += value;
        const events = buffer.split("\n\n");
        buffer = events.pop();
        for (const event of events) {
          const data = event.split("\n").find(line => line.startsWith("data: "));
          if (data) { takeSnapshot(JSON.parse(data.slice(6))); wait = 1000; }
        }
      }
    } catch (error) {
      Object.assign(live, { state: "lost", error: error.message });
      notify();
    }
    if (tokenDialogOpen) await tokenDialogOpen; else await new Promise(done => setTimeout(done, wait));
  }
}

/** Opens the token dialog once for any number of refused requests. */
function openTokenDialog(wrong) {
  if (tokenDialogOpen) return;
  const dialog = document.getElementById("token-dialog");
  const field = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const note = el("p", { class: "soft small", text: "It is stored in this tab only." });
  if (wrong) note.textContent = "The token was not accepted. " + note.textContent;
  tokenDialogOpen = new Promise(done => {
    const form = el("form", { on: { submit(event) {
      event.preventDefault(); keepToken(field.value); dialog.close(); tokenDialogOpen = null; done();
    } } },
    el("h2", { id: "token-title", text: "Admin token" }),
    el("p", {}, el("label", { for: "token", text: "The bearer token of [admin] token " }), field), note,
    el("div", { class: "buttons" }, el("button", { class: "primary", text: "Continue" })));
    dialog.replaceChildren(form);
    dialog.oncancel = event => event.preventDefault();
    dialog.showModal();
  });
}
