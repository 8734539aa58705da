// An image on a canvas: zoom and pan, heat map, bounding boxes, crosshair.
// Two viewers can share a view, so that they show the same place.

const MAX_ZOOM = 64; // screen pixels per image pixel

export class View {
  // x, y: the centre, in fractions of the image.
  constructor() {
    this.reset();
  }
  reset() {
    this.x = 0.5;
    this.y = 0.5;
    this.scale = null; // screen pixels per image pixel; null: fit
  }
}

export class Viewer {
  constructor(canvas, view, { onClick, onView }) {
    this.canvas = canvas;
    this.view = view;
    this.onClick = onClick;
    this.onView = onView;
    this.image = null; // { width, height, regions }
    this.bitmap = null;
    this.heat = null;
    this.opacity = 0.7;
    this.showMap = true;
    this.showBoxes = false;
    this.marks = []; // points { x, y } in image pixels
    this.cross = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.listen();
  }

  show(image, bitmap, heat) {
    this.image = image;
    this.bitmap = bitmap;
    this.heat = heat;
    this.canvas.dataset.id = image.id;
    this.draw();
  }

  clear() {
    this.image = this.bitmap = this.heat = null;
    delete this.canvas.dataset.id;
    this.draw();
  }

  get ratio() {
    return window.devicePixelRatio || 1;
  }

  get size() {
    return [this.canvas.clientWidth * this.ratio, this.canvas.clientHeight * this.ratio];
  }

  get fitScale() {
    const [width, height] = this.size;
    return Math.min(width / this.image.width, height / this.image.height);
  }

  get scale() {
    return this.view.scale ?? this.fitScale;
  }

  // Position of the upper left corner of the image, in device pixels.
  get corner() {
    const [width, height] = this.size;
    const round = this.scale >= 1 ? Math.round : (n) => n;
    return [
      round(width / 2 - this.view.x * this.image.width * this.scale),
      round(height / 2 - this.view.y * this.image.height * this.scale),
    ];
  }

  toImage(event) {
    const box = this.canvas.getBoundingClientRect();
    const [left, top] = this.corner;
    return {
      x: ((event.clientX - box.left) * this.ratio - left) / this.scale,
      y: ((event.clientY - box.top) * this.ratio - top) / this.scale,
    };
  }

  inside = ({ x, y }) => x >= 0 && y >= 0 && x < this.image.width && y < this.image.height;

  zoomTo(scale, place = null) {
    if (!this.image) return;
    const next = Math.min(MAX_ZOOM, Math.max(this.fitScale, scale));
    if (place) {
      // The point stays under the pointer.
      const before = this.scale;
      const keep = (share, at, side) => (at - (at - share * side) * (before / next)) / side;
      this.view.x = keep(this.view.x, place.x, this.image.width);
      this.view.y = keep(this.view.y, place.y, this.image.height);
    }
    this.view.scale = next <= this.fitScale ? null : next;
    this.settle();
  }

  zoomBy(factor, place = null) {
    if (this.image) this.zoomTo(this.scale * factor, place ?? this.cross);
  }

  panBy(dx, dy) {
    if (!this.image) return;
    this.view.x -= dx / (this.image.width * this.scale);
    this.view.y -= dy / (this.image.height * this.scale);
    this.settle();
  }

  settle() {
    if (this.view.scale === null) this.view.reset();
    this.view.x = Math.min(1, Math.max(0, this.view.x));
    this.view.y = Math.min(1, Math.max(0, this.view.y));
    this.onView();
  }

  listen() {
    let start = null;
    let moved = false;
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.image) this.zoomBy(Math.exp(-event.deltaY / 400), this.toImage(event));
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = [event.clientX, event.clientY];
      moved = false;
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [dx, dy] = [event.clientX - start[0], event.clientY - start[1]];
      if (!moved && Math.hypot(dx, dy) < 4) return;
      moved = true;
      start = [event.clientX, event.clientY];
      this.panBy(dx * this.ratio, dy * this.ratio);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const place = this.image && this.toImage(event);
      if (start && !moved && place && this.inside(place)) this.onClick(place);
      start = null;
    });
    this.canvas.addEventListener("pointercancel", () => (start = null));
  }

  draw() {
    const [width, height] = this.size.map(Math.round);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const pen = this.canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (!this.image || !this.bitmap) return;
    const [left, top] = this.corner;
    const [w, h] = [this.image.width * this.scale, this.image.height * this.scale];
    pen.imageSmoothingEnabled = this.scale < 2;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.bitmap, left, top, w, h);
    if (this.showMap && this.heat) {
      pen.imageSmoothingEnabled = true;
      pen.globalAlpha = this.opacity;
      pen.drawImage(this.heat, left, top, w, h);
      pen.globalAlpha = 1;
    }
    if (this.showBoxes) for (const region of this.image.regions ?? []) this.outline(pen, region, left, top);
    for (const mark of this.marks) this.mark(pen, mark, left, top);
    if (this.cross) this.lines(pen, this.cross, left, top);
  }

  // White on black: visible on any image.
  stroke(pen, path) {
    for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = wide * this.ratio * 0.75;
      pen.beginPath();
      path();
      pen.stroke();
    }
  }

  outline(pen, region, left, top) {
    const s = this.scale;
    this.stroke(pen, () =>
      pen.rect(left + region.x * s, top + region.y * s, region.width * s, region.height * s));
  }

  mark(pen, { x, y }, left, top) {
    this.stroke(pen, () =>
      pen.arc(left + x * this.scale, top + y * this.scale, 9 * this.ratio, 0, 2 * Math.PI));
  }

  lines(pen, { x, y }, left, top) {
    const [width, height] = this.size;
    const [sx, sy] = [left + x * this.scale, top + y * this.scale];
    this.stroke(pen, () => {
      pen.moveTo(0, sy);
      pen.lineTo(width, sy);
      pen.moveTo(sx, 0);
      pen.lineTo(sx, height);
    });
  }
}
