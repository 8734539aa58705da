// The current image with its heat map, the nearest image, and what a place was compared with.

import * as api from "./api.js";
import { shortName, state } from "./state.js";
import { View, Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const KEPT = 8; // images, each with its heat map
const CROP_SHARE = 6; // a crop shows 1 / 6 of the longer side
const CROP_SIDES = [48, 256]; // pixels, at least and at most

const pictures = new Map(); // address: promise of a bitmap and a note

function getPicture(path) {
  const address = `${path}?v=${state.version}`;
  const known = pictures.get(address) ?? api.getPicture(address);
  pictures.delete(address);
  pictures.set(address, known);
  known.catch(() => pictures.delete(address));
  while (pictures.size > 2 * KEPT) {
    pictures.delete(pictures.keys().next().value);
  }
  return known;
}

const both = (id) => Promise.all([getPicture(`/image/${id}`), getPicture(`/map/${id}`)]);

export class ImagePanel {
  constructor(report) {
    this.report = report; // called with errors
    this.view = new View();
    const options = { onView: () => this.draw() };
    this.main = new Viewer($("view"), this.view, { ...options, onClick: (place) => this.compare(place) });
    this.other = new Viewer($("other"), this.view, { ...options, onClick: () => {} });
    // Requests are counted, so that a late response does not replace a newer one.
    this.request = 0;
    this.otherRequest = 0;
    this.neighbour = null; // { id, x, y }: the chosen neighbour; null: the nearest image
  }

  get viewers() {
    return [this.main, this.other];
  }

  // Show the current image.
  async show() {
    const image = state.byId.get(state.current);
    this.view.reset();
    this.main.cross = null;
    $("cross").checked = false;
    this.main.marks = [];
    this.other.marks = [];
    this.neighbour = null;
    $("neighbours").replaceChildren();
    $("place").textContent =
      "Click a point in the image, or press c, move the crosshair with the arrow keys and press Enter.";
    await this.load(image);
  }

  async load(image) {
    const request = ++this.request;
    if (image?.id !== this.main.image?.id) {
      // Never show one image under the name of another while it loads.
      this.main.clear();
      this.other.clear();
      $("caption").textContent = "Loading";
      $("other-caption").textContent = "";
    }
    if (!image) {
      $("caption").textContent = "No image matches the filters.";
      return;
    }
    $("view").setAttribute("aria-label", `${image.path}, image score ${image.score.toFixed(4)}`);
    try {
      const [picture, heat] = await both(image.id);
      if (request !== this.request) return;
      this.main.show(image, picture.bitmap, heat.bitmap);
      $("caption").textContent = note(image, picture.note);
      this.draw();
      await this.showOther();
      this.prefetch();
    } catch (error) {
      if (request === this.request) this.report(error);
    }
  }

  prefetch() {
    const at = state.shown.findIndex((image) => image.id === state.current);
    const next = state.shown[at + 1];
    if (next) both(next.id).catch(() => {});
  }

  async showOther() {
    const request = ++this.otherRequest;
    const wanted = $("side").checked;
    $("other-figure").hidden = !wanted;
    const image = state.byId.get(state.current);
    if (!wanted || !image) return;
    const other = state.byId.get(this.neighbour?.id ?? image.nearest);
    if (!other) {
      this.other.clear();
      $("other-caption").textContent = "No nearest image is known.";
      return;
    }
    if (other.id !== this.other.image?.id) this.other.clear();
    const [picture, heat] = await both(other.id);
    if (request !== this.otherRequest) return;
    this.other.marks = this.neighbour ? [this.neighbour] : [];
    this.other.show(other, picture.bitmap, heat.bitmap);
    $("other").setAttribute("aria-label", `${other.path}, image score ${other.score.toFixed(4)}`);
    const what = this.neighbour ? "Compared with" : "Nearest";
    $("other-caption").textContent = `${what}: ${note(other, picture.note)}`;
  }

  draw() {
    for (const viewer of this.viewers) {
      viewer.showMap = $("map").checked;
      viewer.showBoxes = $("boxes").checked;
      viewer.opacity = Number($("opacity").value) / 100;
      viewer.draw();
    }
    if (this.main.image) {
      $("zoom").textContent = `${Math.round(this.main.scale * 100)} %`;
      $("zoom").dataset.scale = this.main.scale;
    }
  }

  // Put the crosshair in the middle of the view.
  startCross() {
    if (!this.main.image) return;
    const { width, height } = this.main.image;
    const at = (share, side) => Math.min(side - 1, Math.floor(share * side));
    this.main.cross = $("cross").checked ? { x: at(this.view.x, width), y: at(this.view.y, height) } : null;
    if (this.main.cross) this.showPlace(this.main.cross);
    this.draw();
  }

  moveCross(dx, dy) {
    const { width, height } = this.main.image;
    const at = this.main.cross;
    at.x = Math.min(width - 1, Math.max(0, at.x + dx));
    at.y = Math.min(height - 1, Math.max(0, at.y + dy));
    this.showPlace(at);
    this.draw();
  }

  showPlace({ x, y }) {
    $("place").textContent = `Pixel ${Math.floor(x)}, ${Math.floor(y)}`;
  }

  // Show what a place was compared with.
  async compare(place) {
    const image = this.main.image;
    this.main.marks = [{ ...place }];
    this.draw();
    this.showPlace(place);
    try {
      const found = await api.getNeighbours(image.id, place.x, place.y);
      if (this.main.image !== image) return;
      const longer = Math.max(image.width, image.height);
      const side = Math.round(Math.min(CROP_SIDES[1], Math.max(CROP_SIDES[0], longer / CROP_SHARE)));
      if (!found.length) {
        $("place").textContent += " is outside the scored area.";
        $("neighbours").replaceChildren();
        return;
      }
      const here = crop({ ...place, id: image.id, path: image.path }, side, "this place");
      const others = found.map((one) => {
        const item = crop(one, side, `distance ${one.distance.toFixed(4)}`);
        item.querySelector("button").addEventListener("click", () => this.showNeighbour(one));
        return item;
      });
      here.querySelector("button").disabled = true;
      $("neighbours").replaceChildren(here, ...others);
    } catch (error) {
      this.report(error);
    }
  }

  showNeighbour({ id, x, y }) {
    this.neighbour = { id, x, y };
    $("side").checked = true;
    this.showOther().catch(this.report);
  }
}

function note(image, why) {
  const size = `${image.path}, ${image.width} x ${image.height} pixels`;
  return why ? `${size}. Only the thumbnail can be shown: ${why}.` : size;
}

function crop({ id, path, x, y }, side, words) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const picture = document.createElement("img");
  picture.src = api.cropAddress(id, x, y, side);
  picture.alt = `${path} at ${Math.round(x)}, ${Math.round(y)}`;
  picture.width = picture.height = 96;
  const text = document.createElement("span");
  text.textContent = words;
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = shortName(path);
  button.title = path;
  button.append(picture, text, name);
  item.append(button);
  return item;
}
