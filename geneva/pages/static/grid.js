// The grid of fragments: one canvas, drawn from one run-length encoded payload. A state is told
// by colour and by shape; the keyboard and the pointer do the same.
"use strict";

const TONES = {
  PLANNED: "grey", SKIPPED: "grey", RUNNING: "blue", DONE: "green", COMMITTED: "green",
  STOPPED: "amber", FAILED: "red", PARTIAL: "orange",
};
const PARTIAL = "PARTIAL"; // look of a fragment that was computed and holds rows that failed
const LARGEST = 24;
const SMALLEST = 5;
const HEIGHT = 300;
const LOOK_MS = 1000;

/** Returns the colour that a tone has in the present theme. */
function colourOf(tone) {
  const probe = document.createElement("i");
  probe.className = tone;
  probe.style.color = "var(--solid)";
  probe.hidden = true;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

/** Draws one cell; what is smaller than 8 px is told by its filling alone. */
function drawCell(pen, state, colour, x, y, size) {
  const gap = size >= 12 ? 2 : 1;
  const side = size - gap;
  pen.fillStyle = pen.strokeStyle = colour;
  if (state === "PLANNED") {
    pen.lineWidth = 1;
    pen.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
  } else if (state === "SKIPPED") {
    const dot = Math.max(2, Math.round(side / 3));
    pen.fillRect(x + (side - dot) / 2, y + (side - dot) / 2, dot, dot);
  } else if (state === "RUNNING") {
    const thick = Math.max(1, Math.round(side / 4));
    pen.lineWidth = thick;
    pen.strokeRect(x + thick / 2, y + thick / 2, side - thick, side - thick);
  } else if (state === "DONE") {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + side, y + side);
    pen.lineTo(x, y + side);
    pen.fill();
    pen.lineWidth = 1;
    pen.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
  } else if (state === "STOPPED") {
    const bar = Math.max(1, Math.floor(side / 3));
    pen.fillRect(x, y, bar, side);
    pen.fillRect(x + side - bar, y, bar, side);
  } else {
    pen.fillRect(x, y, side, side);
    if (state === PARTIAL) { // a hole, of any size that a cell can have
      const bar = Math.max(1, Math.round(side / 4));
      pen.clearRect(x + side / 4, y + (side - bar) / 2, side / 2, bar);
    } else if (state === "FAILED" && side >= 5) {
      pen.strokeStyle = "#fff";
      pen.lineWidth = Math.max(1, side / 8);
      const inset = side * 0.27;
      pen.beginPath();
      pen.moveTo(x + inset, y + inset);
      pen.lineTo(x + side - inset, y + side - inset);
      pen.moveTo(x + side - inset, y + inset);
      pen.lineTo(x + inset, y + side - inset);
      pen.stroke();
    }
  }
}

/** Gives a canvas a size in CSS pixels, and a pen that draws in them. */
function penOf(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

class Grid {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    this.at = root.querySelector(".at");
    this.ids = [];
    this.states = [];
    this.failed = [];
    this.cursor = -1;
    this.text = "";
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.canvas.addEventListener("focus", () => this.move(Math.max(this.cursor, 0)));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    this.canvas.addEventListener("pointerleave", () => this.point(-1));
    this.canvas.addEventListener("click", (event) => this.move(this.under(event)));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(root);
    this.redraw = () => this.draw();
    document.addEventListener("geneva:theme", this.redraw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.redraw);
    this.look();
  }

  /** Asks for the states, and again until the job has ended. */
  async look() {
    if (!this.root.isConnected) {
      this.resized.disconnect();
      document.removeEventListener("geneva:theme", this.redraw);
      return;
    }
    let ended = false;
    if (!document.hidden) {
      try {
        const answer = await fetch(this.root.dataset.grid);
        const text = await answer.text();
        if (answer.ok) {
          if (text !== this.text) this.take(JSON.parse(text));
          this.text = text;
          ended = JSON.parse(text).ended;
        }
      } catch {
        // The service restarts, perhaps: ask again.
      }
    }
    if (!ended) setTimeout(() => this.look(), LOOK_MS);
  }

  take(payload) {
    this.ids = payload.ids.flatMap(([first, n]) => Array.from({ length: n }, (_, i) => first + i));
    this.states = payload.states.flatMap(([place, n]) => Array(n).fill(payload.names[place]));
    this.failed = payload.failed.flatMap(([rows, n]) => Array(n).fill(rows));
    this.draw();
    this.root.dataset.drawn = this.ids.length;
  }

  draw() {
    const width = Math.floor(this.canvas.parentElement.clientWidth);
    if (!width || !this.ids.length) return;
    this.size = LARGEST;
    const rows = () => Math.ceil(this.ids.length / Math.floor(width / this.size));
    while (this.size > SMALLEST && rows() * this.size > HEIGHT) this.size -= 1;
    this.columns = Math.floor(width / this.size);
    const pen = penOf(this.canvas, this.columns * this.size, rows() * this.size);
    const colours = {};
    for (const [state, tone] of Object.entries(TONES)) colours[state] = colourOf(tone);
    this.states.forEach((_, i) => {
      const state = this.lookOf(i);
      const [x, y] = this.place(i);
      drawCell(pen, state, colours[state], x, y, this.size);
    });
    if (this.cursor >= 0) {
      const [x, y] = this.place(this.cursor);
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.lineWidth = 2;
      const side = this.size - (this.size >= 12 ? 2 : 1);
      pen.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
    }
  }

  place(i) {
    return [(i % this.columns) * this.size, Math.floor(i / this.columns) * this.size];
  }

  /** Returns how a fragment looks: rows that failed in it stand out from its state. */
  lookOf(i) {
    return this.failed[i] && this.states[i] !== "FAILED" ? PARTIAL : this.states[i];
  }

  under(event) {
    const column = Math.floor(event.offsetX / this.size);
    const i = Math.floor(event.offsetY / this.size) * this.columns + column;
    return column < this.columns && i < this.ids.length ? i : -1;
  }

  /** Says beside the pointer, or the cursor, what is there. */
  point(i) {
    this.tip.hidden = i < 0;
    if (i < 0) return;
    const [x, y] = this.place(i);
    const failed = this.failed[i];
    const words = [`Fragment ${this.ids[i]}`, this.states[i].toLowerCase()];
    if (failed) words.push(`${failed.toLocaleString("en")} ${failed === 1 ? "row" : "rows"} failed`);
    this.tip.textContent = words.join(" · ");
    const right = x > (this.columns * this.size) / 2;
    this.tip.style.left = right ? "auto" : `${x + this.size}px`;
    this.tip.style.right = right ? `${this.columns * this.size - x}px` : "auto";
    this.tip.style.top = `${y + this.size}px`;
  }

  /** Chooses a fragment and shows what is known of it. */
  move(i) {
    if (i < 0 || i >= this.ids.length) return;
    this.cursor = i;
    this.draw();
    this.point(i);
    clearTimeout(this.due);
    this.due = setTimeout(() => this.show(this.ids[i]), 120);
  }

  async show(id) {
    try {
      const answer = await fetch(`${this.root.dataset.fragment}&id=${id}`);
      if (answer.ok) this.at.innerHTML = await answer.text();
    } catch {
      this.at.textContent = "The service does not answer.";
    }
  }

  press(event) {
    const last = this.ids.length - 1;
    const page = this.columns * 10;
    const by = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns,
      PageDown: page, PageUp: -page, Home: -last, End: last,
    }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      this.move(Math.min(Math.max(this.cursor + by, 0), last));
    } else if (event.key === "f" && !event.ctrlKey && !event.metaKey) {
      const bad = (state, i) => state === "FAILED" || this.failed[i] > 0;
      const next = this.states.findIndex((state, i) => i > this.cursor && bad(state, i));
      this.move(next >= 0 ? next : this.states.findIndex(bad));
    }
  }
}

function drawSwatches() {
  for (const swatch of document.querySelectorAll("[data-swatch]")) {
    const state = swatch.dataset.swatch;
    drawCell(penOf(swatch, 14, 14), state, colourOf(TONES[state]), 0, 0, 14);
  }
}

const grids = new WeakMap();
function installGrids() {
  for (const root of document.querySelectorAll("[data-grid]")) {
    if (!grids.has(root)) grids.set(root, new Grid(root));
  }
  drawSwatches();
}

document.addEventListener("htmx:after:swap", installGrids);
document.addEventListener("geneva:theme", drawSwatches);
installGrids();
