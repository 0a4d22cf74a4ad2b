// The tab with the service's state; it is asked again every few seconds while it is looked at.

import { ask } from "/web/service.js";

const SECONDS = 5;
const $ = id => document.getElementById(id);
let timer = 0;

const row = (tag, cells) => {
  const made = document.createElement("tr");
  made.append(...cells.map(text => Object.assign(document.createElement(tag), { textContent: text })));
  return made;
};
const milliseconds = value => value == null ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
const when = text => text ? new Date(text).toLocaleString() : "–";
const share = value => value == null ? "unknown" : `${(value * 100).toFixed(1)} %`;

function facts(found) {
  const r = found.ready, lines = [
    ["Release", r.release == null ? "none" : `${r.release} (encoder ${r.encoder}, click model ${r.ctr ?? "none"}, contract ${r.contract_id})`],
    ["Asked for", r.asked ?? "none"],
    ["Served since", when(r.since)],
    ["Items", r.items ?? 0],
    ["Items with a vector", share(found.coverage)],
    ["Vectors behind the catalogue", found.lag_seconds == null ? "unknown" : found.lag_seconds < 1 ? "no" : `${Math.round(found.lag_seconds)} s`],
  ];
  if (r.canary) lines.push(["Last canary", typeof r.canary === "string" ? r.canary : `release ${r.canary.candidate ?? "?"}`]);
  $("facts").replaceChildren(...lines.flatMap(([name, text]) => [
    Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: text }),
  ]));
}

async function look() {
  try {
    const [r, told] = await Promise.all([ask("/ready"), ask("/admin/operations")]), found = { ...told, ready: r };
    $("state").textContent = r.refused ? `${r.status}: ${r.refused}` : `The service is ${r.status}.`;
    $("state").classList.toggle("wrong", r.status !== "ready");
    $("alerts").replaceChildren(...r.alerts.map(one => Object.assign(document.createElement("li"), { className: "wrong", textContent: one.text })));
    facts(found);
    $("routes").replaceChildren(...found.routes.map(one => row("td", [one.route, one.requests, one.failed, milliseconds(one.p50), milliseconds(one.p99)])));
    $("moves").replaceChildren(...(found.moves ?? ["The registry does not answer."]).map(text => Object.assign(document.createElement("li"), { textContent: text })));
  } catch (fault) {
    $("state").textContent = fault.message;
    $("state").classList.add("wrong");
  }
}

/** Begin to ask, or stop. */
export function watch(on) {
  clearInterval(timer);
  if (!on) return;
  look();
  timer = setInterval(look, SECONDS * 1000);
}
