// Drives the dashboard in headless Chromium: empty state, load, every view in light, dark and at
// phone width, keyboard, role change, simulation, lost connection. Called by tests/dashboard/run.
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [, , out] = process.argv;
const { ADMIN, DATA, TRACE, TIDEGATE, SERVE_PID } = process.env;
const base = `http://127.0.0.1:${ADMIN}/`;
const chromium = process.env.CHROMIUM || "/usr/bin/chromium";
const views = ["fleet", "requests", "plan", "targets", "what-if"];
const pause = seconds => new Promise(done => setTimeout(done, seconds * 1000));
const problems = [];
let rules = 0;

async function check(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  rules = Math.max(rules, found.passes.length + found.violations.length);
  for (const each of found.violations) problems.push(`axe ${where}: ${each.id}: ${each.help}: ${each.nodes.slice(0, 3).map(node => node.html.slice(0, 160)).join(" | ")}`);
  console.log(`axe ${where}: ${found.violations.length} violations, ${found.passes.length} rules passed`);
}
async function must(page, selector, where) {
  await page.waitForSelector(selector, { visible: true, timeout: 10000 }).catch(() => problems.push(`${where}: no ${selector}`));
}
async function open(page, view) {
  await page.evaluate(view => { location.hash = view; }, view);
  await pause(1.3);
}

async function views_(page, name) {
  await open(page, "fleet");
  const headline = await page.$eval(".headline", node => node.textContent);
  if (name === "light" && !headline.includes("of the requests of the last 10 s met their targets.")) problems.push(`headline under load: ${headline}`);
  for (const view of views) {
    await open(page, view);
    if (view === "requests") {
      // One split request is opened; in one step, because rows leave the table every second.
      if (name === "light") await page.evaluate(() => {
        const rows = [...document.querySelectorAll(".requests tbody tr")];
        (rows.find(row => row.querySelector(".p-handoff")) || rows.at(-1))?.querySelector("button").click();
      });
      if (name === "light") { await pause(0.5); await must(page, "tr.detail", "request detail"); }
    }
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: `${out}/${view}-${name}.png` });
    if (name === "phone") await page.screenshot({ path: `${out}/${view}-${name}-full.png`, fullPage: true });
    await check(page, `${view} ${name}`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1);
    if (wide) problems.push(`${view} ${name}: the page is wider than the window`);
  }
}

async function main() {
  const browser = await puppeteer.launch({ executablePath: chromium, headless: true, args: ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"] });
  console.log(await browser.version());
  const page = await browser.newPage();
  page.on("pageerror", error => problems.push(`script: ${error.stack || error}`));
  page.on("console", message => { if (message.type() === "error" && !/ERR_|Failed to load resource/.test(message.text())) problems.push(`console: ${message.text()}`); });
  const outside = [];
  page.on("request", request => { if (!request.url().startsWith(base) && !request.url().startsWith("data:")) outside.push(request.url()); });
  await page.setViewport({ width: 1360, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  await page.goto(base, { waitUntil: "domcontentloaded" });
  // The page asks for the token, again after a wrong one.
  for (const token of ["wrong", "dashboard-test-token"]) {
    await must(page, "#token-dialog[open] #token", `token dialog before ${token}`);
    if (token === "wrong") await check(page, "token dialog");
    await page.focus("#token");
    await page.keyboard.type(token);
    await page.keyboard.press("Enter");
    await pause(0.5);
  }
  await must(page, ".engine", "fleet");
  const idle = await page.$eval(".headline", node => node.textContent);
  if (!idle.includes("No requests at present.")) problems.push(`headline without requests: ${idle}`);
  for (const view of views) { await open(page, view); await check(page, `${view} empty`); if (view !== "fleet") await must(page, ".state, .panel", `${view} empty`); }
  await page.screenshot({ path: `${out}/empty.png` });

  const seconds = +(process.env.SECONDS_OF_LOAD || 100);
  const load = spawn(TIDEGATE, ["replay", "--trace", TRACE, "--target", `http://127.0.0.1:${DATA}`, "--model", "demo", "--seconds", String(seconds), "--drain", "5", "--rate", "1.1", "--report", process.env.LIVE_REPORT], { stdio: "ignore" });
  await pause(Math.max(20, seconds - 25));
  await views_(page, "light");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await views_(page, "dark");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  await page.setViewport({ width: 390, height: 844, isMobile: true, hasTouch: true });
  await views_(page, "phone");
  await page.setViewport({ width: 1360, height: 900 });

  // Keyboard: Tab reaches the navigation, Enter opens a view, a chart's cursor moves with the arrows.
  await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
  await open(page, "fleet");
  await page.evaluate(() => document.querySelector(".skip").focus());
  for (let i = 0; i < 3; i++) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await pause(0.3);
  const reached = await page.evaluate(() => location.hash);
  if (reached !== "#plan") problems.push(`Tab and Enter lead to ${reached}, not to the third view`);
  await open(page, "fleet");
  await page.focus("figure.chart");
  await page.keyboard.press("End");
  await page.keyboard.press("ArrowLeft");
  const readout = await page.$eval("figure.chart .readout", node => node.textContent);
  if (!/\d\d:\d\d:\d\d/.test(readout)) problems.push(`the cursor of the chart does not move: ${readout}`);

  // A role change: dialog, confirmation, the new role is shown as pinned.
  await page.focus(".engine button");
  await page.keyboard.press("Enter");
  await must(page, "dialog[open]", "role dialog");
  await page.evaluate(() => { document.querySelector("dialog input[value=mixed], dialog input[value=decode]").click(); document.querySelector("dialog input[value=pin]").click(); });
  await page.screenshot({ path: `${out}/role-dialog.png` });
  await check(page, "role dialog");
  await page.click("dialog button.primary");
  await pause(2.5);
  const hold = await page.$eval(".engine .row", node => node.textContent);
  if (!hold.includes("pinned")) problems.push(`the role is not pinned: ${hold}`);

  // A simulation on the requests seen so far.
  await open(page, "what-if");
  await page.click("form button.primary");
  await page.waitForSelector(".panel table, .panel .state strong", { timeout: 60000 });
  await page.waitForFunction(() => !document.body.textContent.includes("Simulating"), { timeout: 90000 }).catch(() => problems.push("the simulation does not end"));
  await page.screenshot({ path: `${out}/what-if-result.png`, fullPage: true });
  if (!await page.$("#view tbody tr")) problems.push("the simulation has no result: " + await page.$eval("#view", node => node.textContent));
  await check(page, "what-if result");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await check(page, "what-if result dark");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);

  await new Promise(done => load.exitCode === null ? load.on("exit", done) : done());
  // The reports of `simulate` and `replay` use the same charts.
  for (const [name, file] of [["simulate", process.env.REPORT], ["replay", process.env.LIVE_REPORT]]) {
    const report = await browser.newPage();
    report.on("pageerror", error => problems.push(`report: ${error}`));
    report.on("request", request => { if (!/^(file|data):/.test(request.url())) problems.push(`report ${name}: outside request ${request.url()}`); });
    await report.setViewport({ width: 1100, height: 900 });
    await report.goto(`file://${file}`, { waitUntil: "load" });
    await pause(0.5);
    if (!await report.$("figure.chart > svg path.line")) problems.push(`report ${name}: no line`);
    await check(report, `report ${name}`);
    await report.screenshot({ path: `${out}/report-${name}.png`, fullPage: true });
    await report.close();
  }

  // The proxy ends: a banner says so, and the last figures stay.
  await open(page, "fleet");
  process.kill(+SERVE_PID);
  await page.waitForSelector("#banner:not([hidden])", { timeout: 15000 }).catch(() => problems.push("no banner after the proxy has ended"));
  await check(page, "connection lost");
  await page.screenshot({ path: `${out}/lost.png` });
  // Every view can still be opened: with the last figures, or with what went wrong.
  for (const view of views.slice(1)) {
    await open(page, view);
    await check(page, `${view} without a connection`);
  }
  await open(page, "requests");
  const shown = await page.$eval("#view", node => node.textContent);
  if (!shown.includes("cannot be read")) problems.push(`requests without a connection: ${shown.slice(0, 200)}`);
  await page.evaluate(() => { live.snapshot = null; draw(); });
  await check(page, "no connection, no data");
  if (outside.length) problems.push(`outside requests: ${outside}`);
  await browser.close();
  for (const each of problems) console.log(`PROBLEM ${each}`);
  console.log(`${problems.length} problems, ${rules} axe rules`);
  process.exit(problems.length ? 1 : 0);
}
main().catch(error => { console.error(error); process.exit(1); });
