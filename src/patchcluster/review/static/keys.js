// Keyboard shortcuts. Text fields keep their keys, and sliders keep the arrow keys.

const $ = (id) => document.getElementById(id);

const PAN = 80; // screen pixels
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Buttons and checkboxes by key: the key does what a click would.
const CLICKS = {
  n: "normal", a: "anomalous", u: "unsure", x: "clear", z: "undo", Backspace: "undo",
  m: "map", b: "boxes", s: "side", c: "cross",
  "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", 0: "fit", 1: "native", "?": "help",
};

export function listenToKeys(panel, go) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const at = event.target;
    const field = at.matches("input:not([type=checkbox], [type=range]), select, textarea");
    if (field) {
      if (event.key === "Escape") at.blur();
      return;
    }
    if (handle(event, at, panel, go)) event.preventDefault();
  });
}

function handle(event, at, panel, go) {
  const { key } = event;
  if (at.matches("input[type=range]") && (key in STEPS || key === "Home" || key === "End")) return false;
  if (key in STEPS) {
    const [dx, dy] = STEPS[key];
    if (panel.main.cross) panel.moveCross(dx * (event.shiftKey ? 10 : 1), dy * (event.shiftKey ? 10 : 1));
    else if (event.shiftKey) panel.main.panBy(-dx * PAN, -dy * PAN);
    else go(dx + dy);
    return true;
  }
  if (key === "Home" || key === "End") {
    go(key === "End" ? Infinity : -Infinity);
    return true;
  }
  if (key === "Enter" && panel.main.cross && !at.matches("button, a")) {
    panel.compare({ ...panel.main.cross });
    return true;
  }
  if (key === "Escape" && panel.main.cross) {
    $("cross").click();
    return true;
  }
  if (key === "[" || key === "]") {
    $("opacity").value = Number($("opacity").value) + (key === "]" ? 10 : -10);
    panel.draw();
    return true;
  }
  if (key === "/") {
    $("search").focus();
    return true;
  }
  const name = CLICKS[key.length === 1 ? key.toLowerCase() : key];
  // One label per press, however long the key is held.
  if (!name || (event.repeat && !name.startsWith("zoom"))) return false;
  $(name).click();
  return true;
}
