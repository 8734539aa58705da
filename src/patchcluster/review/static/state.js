// The state of the page: the run, the labels, and which images are shown in which order.

import * as api from "./api.js";

export const state = {
  version: -1,
  images: [],
  sorted: [], // the images in the chosen order
  scores: [], // without exact duplicates, highest first
  byId: new Map(),
  threshold: { value: 0, meaning: "" },
  labels: new Map(), // id: label, confirmed by the server
  pending: new Map(), // id: label that is being saved
  groups: {}, // number: name
  last: 0,
  job: null,
  count: null, // images that the slider flags; null: as in the run
  order: "score",
  filter: "all",
  group: "",
  search: "",
  shown: [], // images
  current: null, // id
};

const compare = {
  score: (a, b) => b.score - a.score || a.place - b.place,
  uncertainty: (a, b) => (a.uncertainty ?? Infinity) - (b.uncertainty ?? Infinity) || a.place - b.place,
  path: (a, b) => a.place - b.place, // the run lists paths in natural order
};

export async function loadRun() {
  const run = await api.getRun();
  const labels = await api.getChanges(0);
  state.images = run.images.map((image, place) => ({ ...image, place, shownFlag: image.flagged }));
  state.byId = new Map(state.images.map((image) => [image.id, image]));
  state.scores = state.images.filter((image) => !image.copy).map((image) => image.score);
  state.scores.sort((a, b) => b - a);
  state.threshold = run.threshold;
  state.version = run.version;
  state.labels = new Map();
  state.last = 0;
  state.count = null;
  takeChanges(labels);
  if (!state.byId.has(state.current)) state.current = null;
  sort();
  if (state.current === null && state.shown.length) state.current = state.shown[0].id;
}

export function takeChanges(changes) {
  for (const [id, label] of Object.entries(changes.labels)) {
    if (label === null) state.labels.delete(Number(id));
    else state.labels.set(Number(id), label);
  }
  state.last = changes.last;
  state.groups = changes.groups;
  state.job = changes.job;
}

// Flag the images that the run would flag with `count` flagged images; null: as in the run.
export function flagTop(count) {
  state.count = count;
  const { scores } = state;
  const lowest = count === null || count === 0 ? Infinity : scores[Math.min(count, scores.length) - 1];
  for (const image of state.images) {
    if (count === null) image.shownFlag = image.flagged;
    else image.shownFlag = (image.score >= lowest || image.used === "anomalous") && image.used !== "normal";
  }
  arrange();
}

// What the probabilities say of the flags; "" if they are not known. A label counts as certain.
export function describeExpected() {
  if (state.images.some((image) => image.probability === null)) return "";
  const expect = ({ used, probability }) => used ? Number(used === "anomalous") : probability;
  const total = (list) => Math.round(list.reduce((sum, image) => sum + expect(image), 0));
  const flagged = state.images.filter((image) => image.shownFlag);
  const missed = state.images.filter((image) => !image.shownFlag);
  return `Of ${flagged.length} flagged about ${total(flagged)} are expected to be anomalous, `
    + `about ${total(missed)} are missed`;
}

export const savedCount = () => state.scores.filter((score) => score > state.threshold.value).length;

export const labelOf = (id) => (state.pending.has(id) ? state.pending.get(id) : state.labels.get(id)) ?? null;

function passes(image) {
  const label = labelOf(image.id);
  const search = state.search.toLowerCase();
  if (search && !image.path.toLowerCase().includes(search)) return false;
  if (state.group && !image.regions.some((region) => String(region.group) === state.group)) return false;
  if (state.filter === "flagged") return image.shownFlag;
  if (state.filter === "unflagged") return !image.shownFlag;
  if (state.filter === "unlabelled") return label === null;
  return state.filter === "all" || label === state.filter;
}

export function sort() {
  state.sorted = [...state.images].sort(compare[state.order]);
  arrange();
}

// Filter. The current image stays until another is chosen, so that a label does not hide it.
export function arrange(keep = true) {
  const current = state.current;
  state.shown = state.sorted.filter((image) => passes(image) || (keep && image.id === current));
}

export const matching = () => state.images.filter(passes);

export function adjacentImage(step) {
  const at = state.shown.findIndex((image) => image.id === state.current);
  const next = at < 0 ? 0 : Math.min(state.shown.length - 1, Math.max(0, at + step));
  return state.shown[next]?.id ?? null;
}

export const shortName = (path) => path.replaceAll("\\", "/").split("/").slice(-2).join("/");

export const groupTitle = (number) => state.groups[number] || `group ${number}`;
