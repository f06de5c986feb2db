"use strict";
// A history is built by clicking; each change asks the service again. Texts of items are only ever set as text.
const WHY = 3, WAIT_MS = 150;
const place = (id) => document.getElementById(id);
const titles = new Map(), pictures = new Map();
let history_ = [], places = new Map(), shown = [], question = 0, searched = 0, hasPictures = false, most = 12, unknown = new Set();
let token = sessionStorage.getItem("token") || "";

function make(tag, about = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), about);
  made.append(...inside);
  return made;
}

function headers(more = {}) {
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function ask(path, body) {
  const how = body
    ? { method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body) }
    : { headers: headers() };
  const answer = await fetch(path, how);
  if (answer.ok) return answer.json();
  if (answer.status === 401) place("token").hidden = false;
  const isJson = (answer.headers.get("content-type") || "").includes("json");
  throw new Error(isJson ? (await answer.json()).error : `the service answered ${answer.status}; try again`);
}

function say(text) {
  place("status").textContent = text;
}

function name(item) {
  return titles.get(item) || item;
}

function described(item) {
  const title = titles.get(item);
  const what = make("div", { className: "what" }, make("div", {}, title || item));
  if (title) what.append(make("div", { className: "id" }, item));
  return what;
}

function picture(item, frame = "") {
  if (!hasPictures) return "";
  const box = make("div", { className: "picture" });
  const which = `id=${encodeURIComponent(item)}${frame && `&frame=${frame}`}`;
  if (!pictures.has(which)) {
    // fetched rather than named as a source: only so can it carry the token
    pictures.set(which, fetch(`v1/thumbnail?${which}`, { headers: headers() })
      .then(async (answer) => (answer.status === 200 ? URL.createObjectURL(await answer.blob()) : ""), () => ""));
  }
  pictures.get(which).then((source) => { if (source) box.append(make("img", { src: source, alt: "" })); });
  return box;
}

// which frames of the last video of the history the model's denoiser keeps
function frames(found, item) {
  place("frames").replaceChildren(...found.map((each, at) => {
    const what = `Frame ${at + 1}: ${each.kept ? "kept" : "changed"}`;
    const share = make("div", { className: "share" }, `${(100 * each.change).toFixed(each.change < 0.1 ? 1 : 0)} %`);
    const made = make("li", { className: each.kept ? "kept" : "", ariaLabel: `${what}, by ${share.textContent}` },
      picture(item, at + 1), make("div", {}, what), share);
    return made;
  }));
  place("frames-of").textContent = found.length ? `Of ${name(item)}. Green: the denoiser changes them no more than the `
    + "mean of the video's frames." : "";
  place("frames-section").hidden = !found.length;
}

// ---- search

async function search() {
  const text = place("text").value.trim(), mine = ++searched;
  if (!text) return place("found").replaceChildren();
  try {
    const found = await ask(`v1/items?text=${encodeURIComponent(text)}`);
    if (mine !== searched) return;
    for (const each of found.items) titles.set(each.item, each.title);
    place("found").replaceChildren(...found.items.map((each) => {
      const button = make("button", { type: "button" }, described(each.item));
      button.addEventListener("click", () => add(each.item));
      return make("li", {}, button);
    }));
    say(found.items.length ? `${found.items.length} found` : `no title or id holds ${text}`);
  } catch (error) {
    say(error.message);
  }
}

function move(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const buttons = [...place("found").querySelectorAll("button")];
  if (event.key === "Escape") {
    place("text").value = "";
    place("found").replaceChildren();
    place("text").focus();
  } else if (step && buttons.length) {
    event.preventDefault();
    const next = buttons.indexOf(document.activeElement) + step;
    (next < 0 ? place("text") : buttons[Math.min(next, buttons.length - 1)]).focus();
  }
}

// ---- history

function add(item) {
  history_.push(item);
  changed();
}

function remove(at) {
  history_.splice(at, 1);
  changed();
  const buttons = place("history").querySelectorAll("button");
  (buttons[Math.min(at, buttons.length - 1)] || place("text")).focus();
}

function changed() {
  const hash = history_.length ? `#${encodeURIComponent(JSON.stringify(history_))}` : location.pathname;
  window.history.replaceState(null, "", hash);
  place("history").replaceChildren(...history_.map((item, at) => {
    const button = make("button", { type: "button", ariaLabel: `Remove ${name(item)}` }, "Remove");
    button.addEventListener("click", () => remove(at));
    return make("li", {}, picture(item), described(item), button);
  }));
  place("history-hint").hidden = place("clear").hidden = history_.length > 0;
  place("clear").hidden = !history_.length;
  recommend();
}

// ---- recommendations

async function recommend() {
  const mine = ++question, asked = [...history_];
  try {
    const body = asked.length ? { history: asked, k: most } : { history: [], k: most, popular_instead: true };
    const answer = await ask("v1/recommend", body);
    if (mine !== question) return;
    for (const each of answer.recommendations) titles.set(each.item, each.title);
    unknown = new Set(answer.unknown);
    list(answer, asked);
    if (asked.length && answer.recommendations.some((each) => each.score !== null)) await explain(mine, asked);
    else frames([]);
  } catch (error) {
    if (mine === question) say(error.message);
  }
}

function list(answer, asked) {
  const now = answer.recommendations.map((each) => each.item);
  const gone = shown.filter((item) => !now.includes(item) && !asked.includes(item));
  const compared = shown.length > 0 && asked.length > 0;
  place("list-title").textContent = asked.length ? "Recommended" : "Popular, to begin with";
  place("note").textContent = asked.length ? [
    answer.unknown.length ? `Not known to the model: ${answer.unknown.join(", ")}` : "", answer.note,
  ].filter(Boolean).join("; ") : "";
  place("gone").textContent = compared && gone.length ? `No longer among the first ${most}: ${gone.map(name).join(", ")}` : "";
  place("list").replaceChildren(...answer.recommendations.map((each, at) => card(each, at, compared)));
  places = new Map(now.map((item, at) => [item, at]));
  shown = now;
  say(`${now.length} items for a history of ${asked.length}`);
}

function card(each, at, compared) {
  const score = each.score === null ? "" : ` · score ${each.score.toFixed(3)}`;
  const line = make("div", { className: "place" }, `${at + 1}${score} `);
  if (compared) line.append(change(each.item, at));
  const button = make("button", { type: "button", ariaLabel: `Add ${name(each.item)} to the history` }, "Add");
  button.addEventListener("click", () => add(each.item));
  const what = described(each.item);
  what.prepend(line);
  const made = make("li", {}, make("div", { className: "top" }, picture(each.item), what), button);
  made.dataset.item = each.item;
  return made;
}

function change(item, at) {
  const before = places.get(item);
  if (before === undefined) return make("span", { className: "change up" }, "new");
  if (before === at) return "";
  const up = before > at;
  return make("span", { className: `change ${up ? "up" : "down"}` }, `${up ? "up" : "down"} ${Math.abs(before - at)}`);
}

async function explain(mine, asked) {
  const answer = await ask("v1/influences", { history: asked, items: shown });
  if (mine !== question) return;
  frames(answer.frames, asked.filter((item) => !unknown.has(item)).at(-1));
  for (const [at, card_] of [...place("list").children].entries()) {
    const strongest = [...answer.influences[at]].sort((one, two) => Math.abs(two.effect) - Math.abs(one.effect));
    const longest = Math.abs(strongest[0]?.effect || 0) || 1;
    const lines = strongest.slice(0, WHY).map((each) => reason(each, longest));
    card_.append(make("ul", { className: "why", ariaLabel: "What its score owes to the history" }, ...lines));
  }
}

function reason(each, longest) {
  if (each.effect === null) return make("li", {}, make("span", {}, `all of it: ${each.title || each.item}`));
  const bar = make("i", { className: each.effect < 0 ? "less" : "" });
  bar.style.width = `${(100 * Math.abs(each.effect)) / longest}%`;
  const figure = make("b", {}, (each.effect < 0 ? "−" : "+") + Math.abs(each.effect).toFixed(3));
  return make("li", {}, make("span", { title: each.title || each.item }, each.title || each.item),
    make("div", { className: "bar" }, bar), figure);
}

// ---- the beginning

async function begin() {
  try {
    const model = await ask("v1/model");
    hasPictures = model.thumbnails;
    most = Math.min(most, model.items);
    place("token").hidden = true;
    const run = model.run ? ` of the run ${model.run}` : "";
    place("about").textContent = `${model.system}${run}, ranked by ${model.ranked_by}`;
    history_ = await linked();
    changed();
  } catch (error) {
    say(error.message);
  }
}

async function linked() {
  let items = [];
  try {
    items = JSON.parse(decodeURIComponent(location.hash.slice(1) || "[]"));
  } catch { /* not a link of this page */ }
  if (!Array.isArray(items)) return [];
  items = items.filter((item) => typeof item === "string" && item).slice(-100);
  await Promise.all(items.map((item) => ask(`v1/item?id=${encodeURIComponent(item)}`)
    .then((found) => titles.set(item, found.title), () => {})));
  return items;
}

let waiting;
place("text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, WAIT_MS); });
place("search").addEventListener("submit", (event) => {
  event.preventDefault();
  place("found").querySelector("button")?.click();
});
place("search").addEventListener("keydown", move);
place("found").addEventListener("keydown", move);
place("clear").addEventListener("click", () => { history_ = []; changed(); place("text").focus(); });
place("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = place("secret").value;
  sessionStorage.setItem("token", token);
  begin();
});
begin();
