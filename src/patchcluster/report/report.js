"use strict";

// images: most anomalous first, see content.py; never interpreted as HTML.
const { images, threshold: runThreshold, command } = JSON.parse(document.getElementById("data").textContent);

const CHUNK = 60; // cards created and removed together: whole rows of 1 to 6 cards
const MARGIN = "1200px"; // distance from the viewport up to which cards are kept
const PRINTED = 120; // cards
const BARS = 60;

const $ = id => document.getElementById(id);
const root = document.documentElement;
const distinct = images.filter(image => !image.copy).map(image => image.score); // descending

let threshold = runThreshold;
let order = images.map((_, i) => i); // indices of the images that are shown
images.forEach(image => { image.now = image.flagged; });

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const digits = (value, count = 4) => String(Number(value.toPrecision(count)));
const plural = (count, one, more) => `${count} ${count === 1 ? one : more}`;

// --- threshold --------------------------------------------------------------------------------

const highest = distinct[0]; // the threshold is above it where no image stands out
const least = Math.min(distinct[distinct.length - 1], runThreshold);
const span = Math.max(highest - least, 1e-6 * Math.abs(highest), 1e-9);
const lowest = least - span / 50; // so that all can be flagged

function countAbove(value) { // of the distinct images
  let from = 0, to = distinct.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (distinct[middle] > value) from = middle + 1; else to = middle;
  }
  return from;
}

// The threshold that `patchcluster report --flag-top` chooses: equal scores get equal flags.
function thresholdFor(count) {
  if (count <= 0) return distinct[0];
  const last = distinct[Math.min(count, distinct.length) - 1];
  const below = distinct.find(score => score < last);
  return below === undefined ? lowest : (last + below) / 2;
}

function moveThreshold(value) {
  threshold = Math.min(highest, Math.max(lowest, value));
  for (const image of images) {
    image.now = image.label ? image.label === "anomalous" : image.score > threshold;
  }
  showFlags(true);
}

function resetThreshold() {
  threshold = runThreshold;
  for (const image of images) image.now = image.flagged;
  showFlags(false);
}

// A label counts as certain.
const likelihood = image => image.label ? Number(image.label === "anomalous") : image.probability;
const total = list => Math.round(list.reduce((sum, image) => sum + likelihood(image), 0));

function describeExpected(flagged) {
  if (images.some(image => image.probability === null)) return "";
  const missed = total(images.filter(image => !image.now));
  return `Of ${flagged.length} flagged about ${total(flagged)} are expected to be anomalous, ` +
    `about ${missed} are missed.`;
}

function showFlags(moved) {
  const flagged = images.filter(image => image.now);
  const count = countAbove(threshold);
  $("flagged-count").textContent = flagged.length;
  $("said").textContent = `Threshold ${digits(threshold)}: ${flagged.length} of ${images.length} flagged`;
  $("expected").textContent = describeExpected(flagged);
  $("threshold").value = threshold;
  $("threshold").setAttribute("aria-valuetext", `${digits(threshold)}, ${flagged.length} flagged`);
  $("bars").querySelector("clipPath rect").setAttribute("x", toPercent(threshold));
  if (document.activeElement !== $("top")) $("top").value = count;
  $("paths").value = flagged.map(image => image.path).join("\n");
  for (const button of document.querySelectorAll("[data-copy]")) button.nextElementSibling.textContent = "";
  $("reset").disabled = !moved;
  $("moved").hidden = !moved;
  $("command").value = `${command} --flag-top ${count}`;
  for (const card of $("gallery").querySelectorAll(".card")) {
    card.classList.toggle("flagged", images[card.dataset.index].now);
  }
  if (["flagged", "unflagged"].includes($("show").value)) showList();
}

const toPercent = value => Math.min(100, 100 * (value - lowest) / (highest - lowest));

function drawHistogram() {
  const counts = new Array(BARS).fill(0);
  for (const { score } of images) counts[Math.min(BARS - 1, Math.floor(toPercent(score) * BARS / 100))]++;
  const most = Math.max(...counts), width = 100 / BARS;
  const bars = () => counts.flatMap((count, n) => {
    if (!count) return [];
    const height = Math.max(2, 98 * count / most); // one image among thousands is visible too
    return makeSvg("rect", { x: n * width, width: width * .85, y: 100 - height, height });
  });
  const part = makeSvg("rect", { x: 0, y: 0, width: 200, height: 100 });
  $("bars").append(
    makeSvg("clipPath", { id: "above" }, part),
    makeSvg("g", {}, ...bars()),
    makeSvg("g", { class: "above", "clip-path": "url(#above)" }, ...bars()));
  $("lowest").textContent = digits(least);
  $("highest").textContent = digits(highest);
  $("threshold").min = lowest;
  $("threshold").max = highest;
}

function stepThreshold(event) {
  const count = countAbove(threshold);
  const fewer = n => countAbove(distinct[Math.max(0, count - n)]);
  const to = {
    ArrowLeft: count + 1, ArrowDown: count + 1, PageDown: count + 10, Home: distinct.length,
    ArrowRight: fewer(1), ArrowUp: fewer(1), PageUp: fewer(10), End: 0,
  }[event.key];
  if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  moveThreshold(thresholdFor(to));
}

let waiting = false;
function dragThreshold() { // at most once per frame
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    moveThreshold(Number($("threshold").value));
  });
}

// --- gallery ----------------------------------------------------------------------------------

function makePicture(image) {
  const picture = make("span", { class: "picture" });
  picture.style.setProperty("--aspect", image.width / image.height);
  const lazy = { decoding: "async", loading: "lazy" };
  picture.append(
    make("img", { src: image.thumbnail, alt: image.path, ...lazy }),
    make("img", { src: image.heat, alt: "", class: "heat", ...lazy }));
  if (image.regions.length) {
    const group = Number($("group").value);
    picture.append(makeSvg("svg", {
      class: "regions", viewBox: `0 0 ${image.width} ${image.height}`,
      preserveAspectRatio: "none", "aria-hidden": "true",
    }, ...image.regions.map(([x, y, width, height, of]) => makeSvg("rect", {
      x, y, width, height, class: group && of !== group ? "other" : "" }))));
  }
  return picture;
}

function makeCrops(places) {
  return make("ul", { class: "crops" }, ...places.map(({ image, crop }, n) => {
    const { path, now } = images[image];
    const item = make("li", { title: path },
      make("img", { src: crop, alt: n ? `Similar place in ${path}` : "Most anomalous place" }),
      make("span", {}, n ? shortName(path) : "this image"));
    if (n && now) item.append(make("span", { class: "flag" }, "flagged"));
    return item;
  }));
}

const shortName = path => path.replaceAll("\\", "/").split("/").slice(-2).join("/");

function describeRegions(image) {
  if (!image.regions.length) return "";
  const groups = [...new Set(image.regions.map(region => region[4]))].filter(Boolean).sort((a, b) => a - b);
  const of = groups.length ? `, ${groups.length === 1 ? "group" : "groups"} ${groups.join(", ")}` : "";
  return plural(image.regions.length, "region", "regions") + of;
}

// What is odd about the image as a whole; no element if nothing is.
const makeChips = ({ remarks }) => !remarks.length ? [] :
  [make("div", { class: "chips" }, ...remarks.map(one => make("span", { class: "chip" }, one)))];

function makeCard(index, place) {
  const image = images[index];
  const button = make("button", { type: "button", "aria-label": `Enlarge ${image.path}` },
    make("span", { class: "frame" }, makePicture(image)));
  const card = make("li", {
    class: image.now ? "card flagged" : "card", "data-index": index,
    "aria-posinset": place + 1, "aria-setsize": order.length,
  });
  const words = [
    make("div", { class: "name", title: image.path }, shortName(image.path)),
    make("div", { class: "figures" },
      make("span", {}, `#${index + 1} `, make("span", { class: "flag state" })),
      make("span", {}, digits(image.score))),
    make("div", { class: "figures soft" },
      make("span", { class: "name" }, [describeRegions(image), image.label && `labelled ${image.label}`]
        .filter(Boolean).join("; ")),
      ...image.probability === null ? [] : [make("span",
        { class: "likely", title: "Probability that the image is anomalous" },
        `p = ${image.probability.toFixed(2)}`)]),
    ...makeChips(image),
  ];
  if ($("view").value === "pictures") card.append(button, ...words);
  else card.append(button, make("div", { class: "side" }, makeCrops(image.similar), ...words));
  return card;
}

function fill(chunk) {
  if (chunk.childElementCount) return;
  const first = Number(chunk.dataset.first);
  chunk.append(...order.slice(first, first + CHUNK).map((index, n) => makeCard(index, first + n)));
  chunk.style.height = "";
}

function empty(chunk) {
  if (!chunk.childElementCount || chunk.contains(document.activeElement)) return;
  chunk.style.height = `${chunk.offsetHeight}px`;
  chunk.replaceChildren();
}

const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? fill : empty)(target);
}, { rootMargin: `${MARGIN} 0px` });

// Give empty chunks the height of full ones, so that the scroll bar does not jump.
function reserve() {
  const chunks = [...$("gallery").children];
  if (!chunks.length) return;
  const style = getComputedStyle(chunks[0]);
  const columns = style.gridTemplateColumns.split(" ").length;
  const row = parseFloat(style.gridAutoRows), gap = parseFloat(style.rowGap);
  for (const chunk of chunks) {
    if (chunk.childElementCount) continue;
    const rows = Math.ceil(Math.min(CHUNK, order.length - chunk.dataset.first) / columns);
    chunk.style.height = `${rows * row + (rows - 1) * gap}px`;
  }
}

function isShown(image) {
  const group = Number($("group").value);
  const kinds = {
    all: true, flagged: image.now, unflagged: !image.now,
    regions: image.regions.length > 0, labelled: image.label !== "",
  };
  return kinds[$("show").value] &&
    (!group || image.regions.some(region => region[4] === group)) &&
    ($("view").value === "pictures" || Boolean(image.similar?.length)) &&
    image.path.toLowerCase().includes($("find").value.toLowerCase());
}

function showList() {
  order = images.flatMap((image, i) => isShown(image) ? [i] : []);
  if ($("sort").value === "path") {
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    order.sort((a, b) => compare(images[a].path, images[b].path));
  }
  const similar = $("view").value === "similar";
  const rest = images.filter(image => image.similar?.length).length;
  $("shown").textContent = `${order.length} of ${plural(images.length, "image", "images")} shown` +
    (similar ? `; ${rest} with crops of the most anomalous place and of the places in other images ` +
      "that it was compared with" : "");
  $("gallery").classList.toggle("similar", similar);
  watcher.disconnect();
  const chunks = [];
  for (let first = 0; first < order.length; first += CHUNK) {
    chunks.push(make("ol", { class: "chunk", "data-first": first, start: first + 1 }));
  }
  $("gallery").replaceChildren(...chunks);
  reserve();
  if (chunks.length) fill(chunks[0]); // now, or the page would flicker while somebody types
  for (const chunk of chunks) watcher.observe(chunk);
}

function offerGroups() {
  const groups = new Map();
  for (const image of images) {
    for (const of of new Set(image.regions.map(region => region[4]))) {
      if (!of) continue;
      const counts = groups.get(of) ?? [0, 0];
      counts[0] += image.regions.filter(region => region[4] === of).length;
      counts[1] += 1;
      groups.set(of, counts);
    }
  }
  $("groups").hidden = !groups.size;
  for (const [of, [regions, within]] of [...groups].sort((a, b) => a[0] - b[0])) {
    $("group").append(make("option", { value: of },
      `group ${of}: ${plural(regions, "region", "regions")} in ${plural(within, "image", "images")}`));
  }
}

// --- one image, enlarged ----------------------------------------------------------------------

let enlarged = 0; // position in the order

function enlarge(place) {
  enlarged = place;
  const image = images[order[place]];
  $("large-name").textContent = image.path;
  $("large-figures").textContent = [
    `rank ${order[place] + 1} of ${images.length}`, `score ${digits(image.score)}`,
    image.probability !== null && `probability ${image.probability.toFixed(2)}`,
    image.now ? "flagged" : "not flagged", `${image.width} x ${image.height} pixels`,
    describeRegions(image), image.label && `labelled ${image.label}`,
  ].filter(Boolean).join(", ");
  $("large-remarks").replaceChildren(...makeChips(image));
  $("large-picture").replaceChildren(makePicture(image));
  $("large-similar").replaceChildren(...image.similar?.length
    ? [make("h3", {}, "What it should have looked like"), makeCrops(image.similar)] : []);
  $("previous").disabled = place === 0;
  $("next").disabled = place === order.length - 1;
  if (!$("large").open) $("large").showModal();
  if (document.activeElement.disabled) $("close").focus(); // a disabled button gets no keys
}

function step(by) {
  const place = enlarged + by;
  if (place >= 0 && place < order.length) enlarge(place);
}

function focusCard() { // of the enlarged image
  const chunk = $("gallery").children[Math.floor(enlarged / CHUNK)];
  if (!chunk) return;
  fill(chunk);
  chunk.children[enlarged % CHUNK].querySelector("button").focus();
}

// --- copying ----------------------------------------------------------------------------------

async function copy(button) {
  const field = $(button.dataset.copy), status = button.nextElementSibling;
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
  } catch { // some browsers have no clipboard on a page from disk
    if (!document.execCommand("copy")) {
      status.textContent = "Copying is blocked: press Ctrl+C to copy the selected text";
      return;
    }
  }
  status.textContent = "Copied";
}

// --- events -----------------------------------------------------------------------------------

function showHeat() {
  root.style.setProperty("--heat", $("heat").checked ? $("opacity").value / 100 : 0);
}

$("threshold").addEventListener("input", dragThreshold);
$("threshold").addEventListener("keydown", stepThreshold);
$("top").addEventListener("input", event => {
  if (event.target.value !== "") moveThreshold(thresholdFor(Number(event.target.value)));
});
$("reset").addEventListener("click", () => { resetThreshold(); $("threshold").focus(); });
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button));
}
$("heat").addEventListener("change", showHeat);
$("opacity").addEventListener("input", showHeat);
$("regions").addEventListener("change", event =>
  root.classList.toggle("no-regions", !event.target.checked));
for (const id of ["view", "show", "group", "sort"]) $(id).addEventListener("change", showList);
$("find").addEventListener("input", showList);
$("gallery").addEventListener("click", event => {
  const card = event.target.closest("button")?.closest(".card");
  if (card) enlarge(Number(card.getAttribute("aria-posinset")) - 1);
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", event => { if (event.target === $("large")) $("large").close(); });
$("large").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
$("large").addEventListener("close", focusCard);
addEventListener("resize", reserve);
addEventListener("beforeprint", () => {
  const chunks = [...$("gallery").children];
  chunks.slice(0, PRINTED / CHUNK).forEach(fill);
  chunks.slice(PRINTED / CHUNK).forEach(chunk => { chunk.style.height = ""; chunk.replaceChildren(); });
  for (const details of document.querySelectorAll("details")) details.open = true;
  $("printed").textContent = order.length > PRINTED ? `First ${PRINTED} of ${order.length} images.` : "";
});
addEventListener("afterprint", showList);

// Rows of cards have room for remarks only where there are some.
root.classList.toggle("remarked", images.some(image => image.remarks.length));
drawHistogram();
offerGroups();
resetThreshold();
showList();
showHeat();
