// Numbers with units, and elements. Text is set as text nodes only.
const svgNames = "http://www.w3.org/2000/svg";

/** Creates an element. Properties: class, text, on (listeners), other names are attributes. */
function el(name, properties = {}, ...children) {
  const made = properties.svg ? document.createElementNS(svgNames, name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "svg" || value === undefined || value === null || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (key === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (key === "class") made.setAttribute("class", value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined));
  return made;
}
const svg = (name, properties = {}, ...children) => el(name, { svg: true, ...properties }, ...children);

/** Sets text only where it differs, so that assistive technology announces changes only. */
function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

/** Keeps one child of `parent` for each item, in order. `make` creates, `update` fills. */
function keyed(parent, items, key, make, update) {
  const known = parent.keyedChildren ||= new Map();
  const names = items.map(key);
  for (const [name, node] of known) if (!names.includes(name)) { node.remove(); known.delete(name); }
  items.forEach((item, place) => {
    let node = known.get(names[place]);
    if (!node) known.set(names[place], node = make(item));
    if (parent.children[place] !== node) parent.insertBefore(node, parent.children[place] || null);
    update(node, item);
  });
}

const absent = "–";
const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const format = {
  count: value => value === null || value === undefined ? absent : value >= 10000 ? `${round(value / 1000, value >= 100000 ? 0 : 1)} k` : value.toLocaleString("en", { maximumFractionDigits: 0 }),
  number: (value, digits = 1) => value === null || value === undefined || !isFinite(value) ? absent : round(value, digits),
  percent: (share, digits = 1) => share === null || share === undefined || !isFinite(share) ? absent : `${round(share * 100, digits)} %`,
  /** Seconds with the unit that suits their size. */
  seconds(value) {
    if (value === null || value === undefined || !isFinite(value)) return absent;
    const size = Math.abs(value);
    if (size === 0) return "0 s";
    if (size < 1e-6) return `${round(value * 1e9, 1)} ns`;
    if (size < 1e-3) return `${round(value * 1e6, size < 1e-5 ? 1 : 0)} µs`;
    if (size < 1) return `${round(value * 1e3, size < 0.01 ? 1 : 0)} ms`;
    if (size < 90) return `${round(value, size < 10 ? 2 : 1)} s`;
    if (size < 5400) return `${Math.floor(Math.round(value) / 60)} min${Math.round(value) % 60 ? ` ${Math.round(value) % 60} s` : ""}`;
    return `${round(value / 3600, 1)} h`;
  },
  clock: at => new Date(at * 1000).toLocaleTimeString("en-GB"),
  minute: at => new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }),
  plural: (count, one, many = `${one}s`) => `${format.count(count)} ${count === 1 ? one : many}`,
};

/** A bar that shows a share of 1 beside its text. */
function meter(kind) { return el("span", { class: `meter ${kind}`, "aria-hidden": "true" }, el("i")); }
function setMeter(node, share) { node.firstChild.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`; }

const chip = role => el("span", { class: `chip ${role}`, text: role });
const cell = (text, kind) => el("td", { class: kind, text });
const headings = (...names) => el("thead", {}, el("tr", {}, names.map(name => {
  const right = name.startsWith(">");
  if (!name) return el("td");
  return el("th", { scope: "col", class: right ? "n" : null, text: right ? name.slice(1) : name });
})));

/** Placeholder of an empty or failed view, with the cause and advice. */
const stateOf = (title, text) => el("div", { class: "state" }, el("strong", { text: title }), text);
