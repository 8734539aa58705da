// The list of images. Only visible rows are in the page, so that 100,000 images can be scrolled.

import { labelOf, shortName, state } from "./state.js";

const ROW = 64; // pixels, as in review.css

export class List {
  constructor(box, rows, choose) {
    this.box = box;
    this.rows = rows;
    this.made = new Map(); // id: element
    this.choose = choose;
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // Scroll to the current image.
  follow() {
    const at = state.shown.findIndex((image) => image.id === state.current);
    if (at < 0) return;
    const [top, bottom] = [at * ROW, (at + 1) * ROW];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (bottom > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = bottom - this.box.clientHeight;
  }

  draw() {
    this.rows.style.height = `${state.shown.length * ROW}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 3);
    const last = Math.min(state.shown.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 3);
    const wanted = new Set();
    for (let at = first; at < last; at++) {
      const image = state.shown[at];
      wanted.add(image.id);
      if (!this.made.has(image.id)) this.make(image);
      this.fill(this.made.get(image.id), image, at);
    }
    for (const [id, row] of this.made) {
      if (wanted.has(id)) continue;
      row.remove();
      this.made.delete(id);
    }
    const here = state.current !== null && this.made.has(state.current);
    if (here) this.box.setAttribute("aria-activedescendant", `row-${state.current}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  make(image) {
    const row = document.createElement("div");
    row.id = `row-${image.id}`;
    row.className = "row-image";
    row.setAttribute("role", "option");
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = `/thumbnail/${image.id}`;
    const words = document.createElement("div");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = shortName(image.path);
    name.title = image.path;
    const facts = document.createElement("span");
    facts.className = "facts";
    words.append(name, facts);
    row.append(picture, words);
    row.addEventListener("click", () => this.choose(image.id));
    this.rows.append(row);
    this.made.set(image.id, row);
  }

  fill(row, image, at) {
    row.style.top = `${at * ROW}px`;
    row.setAttribute("aria-selected", String(image.id === state.current));
    row.setAttribute("aria-setsize", String(state.shown.length));
    row.setAttribute("aria-posinset", String(at + 1));
    const label = labelOf(image.id);
    const saving = state.pending.has(image.id);
    const facts = row.querySelector(".facts");
    facts.replaceChildren(image.score.toFixed(4));
    if (image.shownFlag) facts.append(tag("flagged", "flagged"));
    if (saving) facts.append(tag("saving", "saving"));
    else if (label) facts.append(tag(label, label));
    facts.append(...image.remarks.map((one) => tag(one, "remark")));
  }
}

export function tag(text, kind) {
  const made = document.createElement("span");
  made.className = `tag ${kind}`;
  made.textContent = text;
  return made;
}
