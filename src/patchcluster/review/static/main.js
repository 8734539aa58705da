// Connects the parts of the page: selection, labels, jobs, and what is shown.

import * as api from "./api.js";
import { listenToKeys } from "./keys.js";
import { List, tag } from "./list.js";
import { ImagePanel } from "./panel.js";
import {
  arrange, describeExpected, flagTop, groupTitle, labelOf, loadRun, matching, adjacentImage,
  savedCount, shortName, sort, state, takeChanges,
} from "./state.js";

const $ = (id) => document.getElementById(id);
const LABELS = ["normal", "anomalous", "unsure"];
const POLL = 1000; // ms
const WORKING = { rescore: "Rescoring", flag: "Saving flags" };
const STEPS = { compare: "comparing", maps: "maps and regions", report: "report" };

const list = new List($("list"), $("rows"), (id) => choose(id));
const panel = new ImagePanel(report);
let queue = Promise.resolve(); // changes are sent one after the other
let lost = false; // the server did not respond
let reported = 0; // number of the last job whose end was reported
let pointed = false; // the last input was by pointer

function report(error) {
  $("banner-text").textContent = error.message;
  $("banner").hidden = false;
}

// --- showing ------------------------------------------------------------------------------------

function showAll() {
  list.draw();
  showFacts();
  showProgress();
  showGroups();
  showJob();
}

function showFacts() {
  const image = state.byId.get(state.current);
  const label = image ? labelOf(image.id) : null;
  $("path").textContent = image ? shortName(image.path) : "";
  $("path").title = image ? image.path : "";
  $("facts").textContent = image ? describe(image) : "";
  if (image) $("facts").append(...image.remarks.map((one) => tag(one, "remark")));
  for (const name of LABELS) $(name).setAttribute("aria-pressed", String(label === name));
  if (!image) $("saved").textContent = "";
  else if (state.pending.has(image.id)) $("saved").textContent = "saving";
  else $("saved").textContent = label ? `labelled ${label}; saved` : "no label";
}

function describe(image) {
  const at = state.shown.indexOf(image) + 1;
  const groups = [...new Set(image.regions.map((r) => r.group).filter(Boolean))].map(groupTitle);
  return [
    `${at} of ${state.shown.length}`,
    `image score ${image.score.toFixed(4)}`,
    ...(image.probability === null ? [] : [`probability ${image.probability.toFixed(2)}`]),
    image.shownFlag ? "flagged" : "not flagged",
    `${image.regions.length} ${image.regions.length === 1 ? "region" : "regions"}`,
    ...groups,
  ].join(" · ");
}

function showProgress() {
  $("progress").textContent = `${state.labels.size} of ${state.images.length} labelled`;
  const flagged = state.images.filter((image) => image.shownFlag).length;
  const count = state.count ?? savedCount();
  const slider = $("count");
  slider.max = state.scores.length;
  slider.value = count;
  $("count-text").textContent = `${flagged} of ${state.images.length} flagged`;
  slider.setAttribute("aria-valuetext", $("count-text").textContent);
  $("count-text").title = state.count === null ? state.threshold.meaning : "not saved yet";
  $("expected").textContent = describeExpected();
  const busy = state.job?.running ?? false;
  $("keep").disabled = busy || state.count === null;
  $("rescore").disabled = busy;
  const fit = matching().length;
  $("shown").textContent = `${fit} of ${state.images.length} images shown`;
  $("batch").textContent = `Label all ${fit} shown`;
  $("batch").disabled = fit === 0;
}

function showGroups() {
  const counts = new Map();
  for (const image of state.images)
    for (const group of new Set(image.regions.map((region) => region.group)))
      if (group) counts.set(group, (counts.get(group) ?? 0) + 1);
  const options = [...counts].sort((a, b) => a[0] - b[0]).map(([group, count]) => {
    const images = count === 1 ? "image" : "images";
    return new Option(`${groupTitle(group)} (${count} ${images})`, group);
  });
  const all = [new Option("all", ""), ...options];
  const select = $("group");
  const same = all.length === select.options.length
    && all.every((option, at) => option.text === select.options[at].text);
  if (!same) select.replaceChildren(...all);
  if (state.group && !counts.has(Number(state.group))) state.group = "";
  select.value = state.group;
  $("rename").disabled = state.group === "";
}

function showJob() {
  const job = state.job;
  $("job").hidden = !job?.running;
  if (!job?.running) return;
  const step = job.step ? `: ${STEPS[job.step] ?? job.step}, ${job.done} of ${job.total}` : "";
  $("job-text").textContent = `${WORKING[job.kind]}${step}`;
  $("job-bar").value = job.total ? job.done / job.total : 0;
}

// --- selection ----------------------------------------------------------------------------------

function choose(id) {
  if (id === null || id === state.current) return;
  state.current = id;
  arrange();
  list.follow();
  showAll();
  panel.show();
}

const go = (step) => choose(adjacentImage(step));

function rearrange() {
  arrange(false);
  const kept = state.shown.some((image) => image.id === state.current);
  if (!kept) state.current = state.shown[0]?.id ?? null;
  list.box.scrollTop = 0;
  list.follow();
  showAll();
  if (!kept) panel.show();
}

// --- labelling ----------------------------------------------------------------------------------

function label(ids, value) {
  for (const id of ids) state.pending.set(id, value);
  showAll();
  queue = queue.then(async () => {
    try {
      await api.saveLabels(ids, value);
      for (const id of ids) {
        if (value === null) state.labels.delete(id);
        else state.labels.set(id, value);
      }
    } catch (error) {
      report(error);
    }
    for (const id of ids) if (state.pending.get(id) === value) state.pending.delete(id);
    showAll();
  });
}

function labelCurrent(value) {
  const id = state.current;
  if (id === null) return;
  const next = adjacentImage(1);
  label([id], value);
  if ($("advance").checked && value !== null) choose(next);
}

function undo() {
  queue = queue.then(async () => {
    try {
      const ids = await api.undo();
      await poll();
      if (ids.length === 1) choose(ids[0]);
    } catch (error) {
      report(error);
    }
  });
}

// --- changes by other tabs and jobs -------------------------------------------------------------

async function poll() {
  const before = state.job?.running ?? false;
  let changes;
  try {
    changes = await api.getChanges(state.last);
  } catch (error) {
    if (!lost) report(error);
    lost = true;
    return;
  }
  if (lost) $("banner").hidden = true;
  lost = false;
  if (changes.version !== state.version) {
    await loadRun();
    list.follow();
    showAll();
    await panel.load(state.byId.get(state.current));
    return;
  }
  const changed = changes.last !== state.last || changes.job?.running || before
    || changes.job?.number !== state.job?.number
    || JSON.stringify(changes.groups) !== JSON.stringify(state.groups);
  takeChanges(changes);
  reportJob();
  if (changed) showAll();
}

function reportJob() {
  const job = state.job;
  if (!job || job.running || job.number === reported) return;
  reported = job.number;
  if (job.error) report(new Error(job.error));
}

async function pollForever() {
  await poll().catch(report);
  setTimeout(pollForever, POLL);
}

const start = (job) => async () => {
  try {
    await queue;
    await job();
    await poll();
  } catch (error) {
    report(error);
  }
};

// --- the page -----------------------------------------------------------------------------------

function listen() {
  for (const name of LABELS) $(name).addEventListener("click", () => labelCurrent(name));
  $("clear").addEventListener("click", () => labelCurrent(null));
  $("undo").addEventListener("click", undo);
  $("previous").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  for (const name of ["order", "filter", "group", "search"])
    $(name).addEventListener("input", () => {
      state[name] = $(name).value;
      if (name === "order") sort();
      rearrange();
      // After a choice by pointer, keys go to the list again.
      if (pointed && name !== "search") $("list").focus();
    });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") $("list").focus();
  });
  document.addEventListener("pointerdown", () => (pointed = true), true);
  document.addEventListener("keydown", () => (pointed = false), true);
  $("count").addEventListener("input", () => {
    flagTop(Number($("count").value));
    showAll();
  });
  $("keep").addEventListener("click", start(() => api.flag(state.count)));
  $("rescore").addEventListener("click", start(api.rescore));
  $("banner-close").addEventListener("click", () => ($("banner").hidden = true));
  $("zoom-in").addEventListener("click", () => panel.main.zoomBy(1.5));
  $("zoom-out").addEventListener("click", () => panel.main.zoomBy(1 / 1.5));
  $("fit").addEventListener("click", () => panel.main.zoomTo(0));
  $("native").addEventListener("click", () => panel.main.zoomTo(1));
  for (const name of ["map", "boxes"]) $(name).addEventListener("change", () => panel.draw());
  $("opacity").addEventListener("input", () => panel.draw());
  $("cross").addEventListener("change", () => panel.startCross());
  $("side").addEventListener("change", () => {
    panel.neighbour = null;
    panel.showOther().catch(report);
  });
  $("help").addEventListener("click", () => $("keys").showModal());
  listenToDialogs();
  listenToKeys(panel, go);
}

function listenToDialogs() {
  $("batch").addEventListener("click", () => {
    const count = matching().length;
    $("batch-text").textContent = `Label all ${count} shown images:`;
    $("batch-dialog").showModal();
  });
  for (const button of $("batch-dialog").querySelectorAll("[data-label]"))
    button.addEventListener("click", () => {
      $("batch-dialog").close();
      label(matching().map((image) => image.id), button.dataset.label || null);
    });
  $("rename").addEventListener("click", () => {
    $("name").value = state.groups[state.group] ?? "";
    $("name-dialog").showModal();
  });
  const save = () => {
    $("name-dialog").close();
    start(() => api.nameGroup(Number(state.group), $("name").value))();
  };
  $("name-save").addEventListener("click", save);
  $("name").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    save();
  });
}

history.replaceState(null, "", "/"); // the token is a cookie now
listen();
try {
  await loadRun();
  if (state.job && !state.job.running) reported = state.job.number;
  showAll();
  panel.show();
  document.body.dataset.ready = "true";
} catch (error) {
  report(error);
}
pollForever();
