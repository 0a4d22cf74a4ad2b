// Search by picture and words, similar items, the candidate beside the champion; and the tab with the service's state.

import { ask, show } from "/web/service.js";
import { choose, chosen, picture, useWhole } from "/web/crop.js";
import { watch } from "/web/operations.js";

const MOST = 24;
const $ = id => document.getElementById(id);
let asked = 0; // requests so far: only the last one's answer is shown

function say(text, wrong = false) {
  $("say").textContent = text;
  $("say").classList.toggle("wrong", wrong);
}

function card(item) {
  const made = $("card").content.cloneNode(true), image = made.querySelector("img"), button = made.querySelector("button");
  if (item.image_ids?.length) show(image, item.image_ids[0]);
  made.querySelector(".title").textContent = item.title ?? `Item ${item.item_id}`;
  const price = item.price == null ? "" : `${item.price.toFixed(2)} · `;
  made.querySelector(".more").textContent = `${price}similarity ${item.score.toFixed(2)} · ${item.item_id}`;
  button.title = "Show similar items";
  button.addEventListener("click", () => similar(item.item_id, item.title ?? `item ${item.item_id}`));
  return made;
}

function column(name, items) {
  const made = $("column").content.cloneNode(true);
  made.querySelector("h2").textContent = name;
  made.querySelector("h2").hidden = !name;
  made.querySelector("ol").replaceChildren(...items.map(card));
  return made;
}

/** Run a request and show what it finds, unless another one was made meanwhile. */
async function run(request, describe) {
  const mine = ++asked;
  say("Searching …");
  $("search").setAttribute("aria-busy", "true");
  try {
    const columns = await request();
    if (mine !== asked) return;
    $("results").replaceChildren(...columns.map(([name, body]) => column(name, body.items)));
    const [, body] = columns[0];
    say(body.items.length ? describe(body) : "Nothing was found: try fewer filters.");
    if (body.degraded) say(`${describe(body)} ${body.degraded}`, true);
  } catch (fault) {
    if (mine === asked) { say(fault.message, true); $("results").replaceChildren(); }
  } finally {
    if (mine === asked) $("search").removeAttribute("aria-busy");
  }
}

async function fields() {
  const data = new FormData(), part = await picture(), text = $("text").value.trim();
  if (part) data.set("image", part, "picture");
  if (text) data.set("text", text);
  if (!part && !text) throw new Error("Choose a picture or write some words first.");
  for (const name of ["category", "brand", "price_min", "price_max"]) if ($(name).value.trim()) data.set(name, $(name).value.trim());
  if ($("each").checked) data.set("group", "product");
  data.set("k", String(MOST));
  return data;
}

async function search() {
  await run(async () => {
    const body = await fields();
    if (!$("beside").checked) return [["", await ask("/v1/search", { method: "POST", body })]];
    const both = await ask("/v1/compare", { method: "POST", body });
    return ["champion", "candidate"].map(who => [`Release ${both[who].release}, ${who}`, both[who]]);
  }, body => `${body.items.length} items, by release ${body.release}.`);
}

function similar(id, title, remember = true) {
  if (remember) history.pushState({ id, title }, "", `#similar-${encodeURIComponent(id)}`);
  window.scrollTo({ top: 0 });
  return run(async () => [["", await ask(`/v1/items/${encodeURIComponent(id)}/similar?k=${MOST}`)]], () => `Similar to “${title}”. Go back for what was found before.`);
}

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) { say(`${file.name || "What was given"} is no picture.`, true); return; }
  choose(file);
  search();
}

function open(name) {
  for (const each of ["search", "operations"]) {
    const here = each === name;
    $(each).hidden = !here;
    $(`tab-${each}`).setAttribute("aria-selected", String(here));
    $(`tab-${each}`).tabIndex = here ? 0 : -1;
  }
  watch(name === "operations");
}

$("ask").addEventListener("submit", event => { event.preventDefault(); search(); });
for (const id of ["file", "camera"]) $(id).addEventListener("change", event => { take(event.target.files[0]); event.target.value = ""; });
$("whole").addEventListener("click", () => { useWhole(); search(); });
$("remove").addEventListener("click", () => { choose(null); $("file").focus(); });
$("frame").addEventListener("pointerup", () => chosen() && search());
document.addEventListener("paste", event => take([...event.clipboardData.files][0]));
document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", event => { event.preventDefault(); $("drop").classList.remove("over"); take([...event.dataTransfer.files][0]); });
window.addEventListener("popstate", event => event.state ? similar(event.state.id, event.state.title, false) : chosen() || $("text").value ? search() : $("results").replaceChildren());
for (const name of ["search", "operations"]) {
  $(`tab-${name}`).addEventListener("click", () => open(name));
  $(`tab-${name}`).addEventListener("keydown", event => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = name === "search" ? "operations" : "search";
    open(other);
    $(`tab-${other}`).focus();
  });
}

ask("/ready").then(r => say(r.ready ? `Release ${r.release} is served: ${r.items} items.` : `Nothing is served yet: ${r.refused}`, !r.ready)).catch(fault => say(fault.message, true));
