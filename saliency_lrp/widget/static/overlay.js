// The relevance overlay: pictures are blended here, so that looking costs no message to the kernel.
// The kernel is asked only for what must be computed: another class, method, composite, layer or channel.

const MAX_ZOOM = 16;
const LUT_LAST = 255;
const MORE = " more"; // no composite has that name
const NARROW = 500; // pixels below which the looks are folded
const DARKEST = 70; // of the light grays

/* ---------- pure functions on pixels (the Python side has the same arithmetic) ---------- */

/** Ascending |values|: what percentiles are read from. */
export function sortedMagnitudes(values) {
  return Float32Array.from(values, Math.abs).sort();
}

/** The magnitude that gets full color: a percentile of |R| (linear interpolation), the maximum where that is 0. */
export function colorLimit(magnitudes, percentile) {
  const last = magnitudes.length - 1;
  if (last < 0) return 0;
  const place = (percentile / 100) * last;
  const low = Math.floor(place);
  const high = Math.min(low + 1, last);
  const limit = magnitudes[low] + (place - low) * (magnitudes[high] - magnitudes[low]);
  return limit > 0 ? limit : magnitudes[last];
}

const KEEP = {
  both: (t) => t,
  positive: (t) => Math.max(t, 0),
  negative: (t) => Math.min(t, 0),
};

/** Color (3 bytes) and opacity (sqrt of the clipped |R|, so zero is transparent) of every pixel. */
export function colorise(values, limit, sign, lut, hasSign = true) {
  const keep = hasSign ? KEEP[sign] : Math.abs;
  const scale = limit > 0 ? 1 / limit : 0;
  const rgb = new Uint8Array(values.length * 3);
  const alpha = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const t = keep(Math.min(Math.max(values[i] * scale, -1), 1));
    const entry = 3 * Math.round((hasSign ? (t + 1) / 2 : t) * LUT_LAST);
    rgb[3 * i] = lut[entry];
    rgb[3 * i + 1] = lut[entry + 1];
    rgb[3 * i + 2] = lut[entry + 2];
    alpha[i] = Math.sqrt(Math.abs(t));
  }
  return { rgb, alpha };
}

/** What lies under a map: the picture, the picture in light grays, nothing. */
export const BACKDROPS = {
  color: (image) => image,
  gray: (image) => {
    const out = new Uint8Array(image.length);
    for (let i = 0; i < image.length; i += 3) {
      const luma = 0.299 * image[i] + 0.587 * image[i + 1] + 0.114 * image[i + 2];
      out.fill(Math.round(DARKEST + luma * ((255 - DARKEST) / 255)), i, i + 3);
    }
    return out;
  },
  none: (image, lut, hasSign) => {
    const nothing = hasSign ? 3 * Math.round(LUT_LAST / 2) : 0;
    const out = new Uint8Array(image.length);
    for (let i = 0; i < image.length; i++) out[i] = lut[nothing + (i % 3)];
    return out;
  },
};

/** Write backdrop and overlay into the RGBA bytes of a canvas. */
export function blend(rgba, backdrop, overlay, opacity) {
  const { rgb, alpha } = overlay;
  for (let i = 0, p = 0, q = 0; i < alpha.length; i++, p += 3, q += 4) {
    const a = opacity * alpha[i];
    rgba[q] = backdrop[p] + a * (rgb[p] - backdrop[p]);
    rgba[q + 1] = backdrop[p + 1] + a * (rgb[p + 1] - backdrop[p + 1]);
    rgba[q + 2] = backdrop[p + 2] + a * (rgb[p + 2] - backdrop[p + 2]);
    rgba[q + 3] = 255;
  }
}

/* ---------- small helpers ---------- */

const bytesOf = (view) =>
  view instanceof Uint8Array ? view : new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);

function floatsOf(view) {
  const bytes = bytesOf(view);
  return new Float32Array(bytes.slice().buffer, 0, bytes.length >> 2); // the copy is aligned
}

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const isUnfinished = (state) => state === "running" || state === "waiting";
const percent = (fraction) => `${(100 * fraction).toFixed(fraction < 0.0995 ? 2 : 1)} %`;
const signed = (value) => (value > 0 ? "+" : "") + value.toPrecision(3);
const className = (model, index) => model.get("classes")[index] ?? `class ${index}`;

function labeled(text, control, extra) {
  control.setAttribute("aria-label", text);
  return h("label", { className: "saliency-control" }, h("span", {}, text), control, extra);
}

function optionsOf(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => h("option", { value, textContent: text })));
  select.value = chosen;
}

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const quarters = ["left upper", "right upper", "left lower", "right lower"];

/** The strongest pixel, and the quarter of the picture with most of the positive relevance. */
export function whereStrongest(values, width) {
  const height = values.length / width;
  const sums = [0, 0, 0, 0];
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]) > Math.abs(values[best])) best = i;
    if (values[i] <= 0) continue;
    sums[2 * (Math.floor(i / width) >= height / 2) + (i % width >= width / 2)] += values[i];
  }
  if (!values[best]) return "nothing is relevant";
  const all = sums.reduce((sum, value) => sum + value, 0);
  const most = sums.indexOf(Math.max(...sums));
  const share = all ? `; ${Math.round((100 * sums[most]) / all)} % of the positive relevance in the ${quarters[most]} quarter` : "";
  return `strongest at x ${best % width}, y ${Math.floor(best / width)}${share}`;
}

/* ---------- lines over a picture: what the model saw, and where the object is ---------- */

const SVG = (() => { // without an address in the page
  const box = document.createElement("div");
  box.innerHTML = "<svg></svg>";
  return box.firstChild.namespaceURI;
})();

class Marks {
  constructor(board) {
    this.board = board;
    this.node = document.createElementNS(SVG, "svg");
    this.node.setAttribute("class", "saliency-marks");
    this.node.setAttribute("preserveAspectRatio", "none");
    this.node.setAttribute("aria-hidden", "true");
    this.show();
  }

  show() {
    const { width, height, model } = this.board;
    this.node.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.node.replaceChildren(...marksOf(model).map(([name, path]) => {
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("d", path);
      line.setAttribute("class", `saliency-${name}`);
      return line;
    }));
  }
}

function marksOf(model) {
  const [top, left, bottom, right] = model.get("frame") ?? [];
  const frame = right === undefined ? [] : [["frame", `M${left} ${top}H${right}V${bottom}H${left}Z`]];
  return [...frame, ...(model.get("truth") ? [["truth", model.get("truth")]] : [])];
}

/* ---------- one panel: a map over the picture ---------- */

class Panel {
  constructor(id, board) {
    this.id = id;
    this.board = board;
    this.values = null;
    this.signed = true;
    this.canvas = h("canvas", { className: "saliency-canvas", tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.marks = new Marks(board);
    this.across = h("div", { className: "saliency-cross saliency-across", hidden: true });
    this.down = h("div", { className: "saliency-cross saliency-down", hidden: true });
    this.zoomed = h("div", { className: "saliency-zoomed" }, this.canvas, this.marks.node, this.across, this.down);
    this.title = h("strong");
    this.verdict = h("p", { className: "saliency-verdict", hidden: true });
    this.enlarge = h("button", { type: "button", className: "saliency-enlarge", onclick: () => this.toggleLarge() });
    this.note = h("span", { className: "saliency-note" });
    this.readout = h("output", { className: "saliency-readout" });
    this.bar = h("canvas", { className: "saliency-bar", width: 256, height: 1 });
    this.bar.setAttribute("aria-hidden", "true");
    this.low = h("span");
    this.high = h("span");
    this.progress = h("progress", { max: 1 });
    this.progress.setAttribute("aria-label", `progress of ${id}`);
    this.cancel = h("button", { type: "button", textContent: "Cancel", onclick: () => board.cancel(id) });
    this.cancel.setAttribute("aria-label", `cancel ${id}`);
    this.busy = h("div", { className: "saliency-busy", hidden: true }, this.progress, this.cancel);
    this.messages = h("div", { className: "saliency-messages" });
    this.messages.setAttribute("role", "status");
    this.account = h("details", { className: "saliency-account", hidden: true });
    this.checkNode = h("div", { className: "saliency-check" });
    this.checkNode.setAttribute("aria-live", "polite");
    this.node = h(
      "figure",
      { className: "saliency-panel" },
      h("figcaption", {}, this.title, this.note, this.enlarge),
      h("div", { className: "saliency-window" }, this.zoomed),
      this.busy,
      h("div", { className: "saliency-scale" }, this.low, this.bar, this.high),
      this.readout,
      this.verdict,
      this.messages,
      this.checkNode,
      this.account,
    );
    this.node.dataset.panel = id;
    this.toggleLarge(false);
    this.listen();
  }

  toggleLarge(large = !this.large) {
    this.large = large;
    this.node.classList.toggle("saliency-large", large);
    this.enlarge.textContent = large ? "⤡" : "⤢";
    this.enlarge.title = large ? "back among the others" : "as wide as the page";
    this.enlarge.setAttribute("aria-label", `${large ? "shrink" : "enlarge"} ${this.id}`);
    this.enlarge.setAttribute("aria-pressed", large);
  }

  listen() {
    const { canvas, board } = this;
    canvas.addEventListener("pointermove", (event) => this.pointed(event));
    canvas.addEventListener("pointerleave", () => board.point(null));
    canvas.addEventListener("pointerdown", (event) => board.startPan(event, canvas));
    canvas.addEventListener("keydown", (event) => board.key(event));
    canvas.addEventListener("focus", () => board.point(board.spot ?? board.center()));
    // Ctrl or Shift: a plain wheel must go on scrolling the notebook
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey && board.zoom.scale === 1) return;
      event.preventDefault();
      board.zoomBy((event.deltaY || event.deltaX) < 0 ? 1.25 : 0.8, this.pixelAt(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => board.zoomBy(2, this.pixelAt(event)));
  }

  pixelAt(event) {
    const box = this.canvas.getBoundingClientRect(); // includes the zoom
    const clamp = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
    return {
      x: clamp(((event.clientX - box.left) / box.width) * this.board.width, this.board.width),
      y: clamp(((event.clientY - box.top) / box.height) * this.board.height, this.board.height),
    };
  }

  pointed(event) {
    if (this.board.panning) this.board.pan(event, this.canvas);
    else this.board.point(this.pixelAt(event));
  }

  describe(info) {
    if (info.state === "done" && this.signed !== (info.signed ?? true)) {
      this.signed = !this.signed;
      this.recolor();
    }
    this.title.textContent = info.title;
    this.title.title = info.title;
    const done = info.state === "done" && info.seconds != null ? `${info.seconds.toFixed(2)} s` : "";
    this.note.textContent = info.state === "done" ? done : info.state;
    this.node.dataset.state = info.state;
    const running = isUnfinished(info.state);
    this.busy.hidden = !running;
    if (running) {
      if (info.total) this.progress.value = Math.min(info.done / info.total, 1);
      else this.progress.removeAttribute("value");
      const passes = `${info.done}${info.total ? "/" + info.total : ""} passes${info.left ? ", " + info.left : ""}`;
      this.note.textContent = info.done ? passes : info.state;
    }
    this.verdict.textContent = info.account?.verdict ?? "";
    this.verdict.hidden = !this.verdict.textContent;
    this.messages.replaceChildren(...(info.warnings ?? []).map((text) => h("p", { textContent: text })));
    this.showAccount(info.account);
    this.info = info;
    this.label();
    this.showCheck(info);
  }

  /** Whether the map can be trusted: a button first, then what was measured. */
  showCheck(info) {
    const { board } = this;
    const told = JSON.stringify([info.state, info.check, board.dead]);
    if (told === this.toldCheck) return;
    this.toldCheck = told;
    const possible = board.model.get("can_check") && info.state === "done" && !["layer", "concept"].includes(this.id);
    if (!info.check) {
      const ask = h("button", { type: "button", textContent: "Is this map about the model?", disabled: board.dead,
        title: "takes parts away, asks for another class, draws the head anew, tries a second rule",
        onclick: () => board.model.send({ type: "check", id: this.id }) });
      this.checkNode.replaceChildren(...(possible && board.live ? [ask] : []));
      return;
    }
    const { state, verdict, holds, findings = [], left_out = [], pictures = [] } = info.check;
    if (state === "running") {
      this.checkNode.replaceChildren(h("p", { textContent: "Checking this map …" }));
      return;
    }
    const mark = (good) => h("span", { className: good ? "saliency-holds" : "saliency-fails", textContent: good ? "✓" : "✗" });
    const line = ({ name, text, holds: good }) => {
      const word = h("span", { className: "saliency-hidden", textContent: good ? "holds: " : "does not hold: " });
      return h("li", {}, mark(good), word, h("span", { textContent: `${name}: ${text}` }));
    };
    const picture = ({ title, src }) =>
      h("figure", {}, h("img", { src, alt: `map for comparison: ${title}` }), h("figcaption", { textContent: title }));
    this.checkNode.replaceChildren(
      h("p", {}, mark(holds === true), h("strong", { textContent: verdict })),
      h("div", { className: "saliency-compared" }, ...pictures.map(picture)),
      h("details", {}, h("summary", { textContent: "What was measured" }), h("ul", {}, ...findings.map(line)),
        ...left_out.map((text) => h("p", { textContent: `Not asked: ${text}` }))),
    );
  }

  /** What the canvas shows, for who cannot see it. */
  label() {
    const { info } = this;
    if (!info) return;
    const range = this.values ? `, from ${signed(this.signed ? -this.limit : 0)} to ${signed(this.limit)}` : "";
    const sides = this.signed ? "positive values speak for the class, negative ones against it" : "values without a sign";
    const where = this.values ? `; ${sides}; ${whereStrongest(this.values, this.board.width)}` : "";
    this.canvas.setAttribute("aria-label", `${info.title}: relevance over the picture (${info.state}${range}${where})`);
  }

  showAccount(account) {
    this.account.hidden = !account;
    if (!account) return;
    const open = this.account.open;
    const rows = account.rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row", textContent: name }),
      h("td", { textContent: value })));
    const numbers = [h("table", {}, h("tbody", {}, ...rows)), h("pre", { textContent: account.text })];
    const bars = account.bars ?? [];
    const more = bars.length ? [h("details", {}, h("summary", { textContent: "Numbers" }), ...numbers)] : numbers;
    this.account.replaceChildren(
      h("summary", { textContent: `Account of relevance: ${account.summary}` }),
      this.accountBars(bars),
      ...more,
    );
    this.account.open = open;
  }

  /** From the score down to what arrived; a bar of a layer opens it. */
  accountBars(bars) {
    const ends = bars.flatMap(({ start, end }) => [start, end]);
    const low = Math.min(0, ...ends);
    const span = Math.max(...ends, 0) - low || 1;
    const items = bars.map(({ name, kind, label, start, end, layer }) => {
      const left = (100 * (Math.min(start, end) - low)) / span;
      const drawn = h("span", { className: "saliency-drawn" });
      drawn.style.marginLeft = `${left}%`;
      drawn.style.width = `${(100 * Math.abs(end - start)) / span}%`;
      drawn.dataset.kind = kind;
      const parts = [h("span", { textContent: name }), h("span", {}, drawn), h("span", { textContent: label })];
      if (!layer) return h("li", {}, h("div", {}, ...parts));
      const button = h("button", { type: "button", title: `show layer ${layer}`, onclick: () => this.board.ask("layer", layer),
        disabled: !this.board.live || this.board.dead }, ...parts);
      button.setAttribute("aria-label", `${name}: ${label}; show layer ${layer}`);
      return h("li", {}, button);
    });
    return h("ol", { className: "saliency-account-bars", hidden: bars.length === 0 }, ...items);
  }

  load(view) {
    this.volume = view && view.byteLength ? floatsOf(view) : null;
    this.magnitudes = this.volume && sortedMagnitudes(this.volume);
    this.cut();
  }

  /** Take the slice that is shown. */
  cut() {
    const { width, height, slice } = this.board;
    this.values = this.volume && this.volume.subarray(slice * width * height, (slice + 1) * width * height);
    this.recolor();
    this.label();
  }

  recolor() {
    const { board } = this;
    const lut = board.lut(this.signed);
    this.canvas.width = board.width;
    this.canvas.height = board.height;
    this.canvas.classList.toggle("saliency-coarse", board.width < 160); // show true pixels, not a blur
    this.pixels = this.context.createImageData(board.width, board.height);
    this.overlay = null;
    if (this.values) {
      this.limit = colorLimit(this.magnitudes, board.model.get("percentile"));
      this.overlay = colorise(this.values, this.limit, board.model.get("sign"), lut, this.signed);
    }
    this.scale(lut);
    this.draw();
  }

  scale(lut) {
    const context = this.bar.getContext("2d");
    const strip = context.createImageData(256, 1);
    const keep = KEEP[this.board.model.get("sign")];
    for (let i = 0; i < 256; i++) {
      const entry = 3 * (this.signed ? Math.round(((keep((2 * i) / 255 - 1) + 1) / 2) * LUT_LAST) : i);
      strip.data.set([lut[entry], lut[entry + 1], lut[entry + 2], 255], 4 * i);
    }
    context.putImageData(strip, 0, 0);
    const [low, high] = this.signed ? ["against", "for"] : ["none", "most"];
    this.low.textContent = this.values ? `${low} ${signed(this.signed ? -this.limit : 0)}` : "";
    this.high.textContent = this.values ? `${signed(this.limit)} ${high}` : "";
  }

  draw() {
    const { board } = this;
    const overlay = this.overlay ?? board.nothing();
    blend(this.pixels.data, board.backdrop(this.signed), overlay, board.model.get("opacity"));
    this.context.putImageData(this.pixels, 0, 0);
  }

  mark(spot) {
    this.across.hidden = this.down.hidden = !spot;
    if (!spot) {
      this.readout.textContent = "";
      return;
    }
    const { width, height } = this.board;
    this.across.style.top = `${(100 * (spot.y + 0.5)) / height}%`;
    this.down.style.left = `${(100 * (spot.x + 0.5)) / width}%`;
    const at = `x ${spot.x}, y ${spot.y}`;
    this.readout.textContent = this.values ? `R ${signed(this.values[spot.y * width + spot.x])}  ${at}` : at;
  }
}

/* ---------- the board: all panels, linked ---------- */

class Board {
  constructor(model, el) {
    this.model = model;
    this.panels = new Map();
    this.depth = Math.max(model.get("depth") ?? 1, 1);
    this.slice = Math.min(Math.max(model.get("slice") ?? 0, 0), this.depth - 1);
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.spot = null;
    this.handlers = [];
    this.live = model.get("live");
    this.dead = false;
    this.status = h("p", { className: "saliency-status", hidden: true });
    this.status.setAttribute("role", "status");
    this.root = h("section", { className: "saliency" });
    this.root.setAttribute("aria-label", "saliency comparison");
    // or JupyterLab takes Enter, arrows and letters for its own; Ctrl+S and the like are left to it
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.addEventListener("keydown", (event) => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); });
    this.grid = h("div", { className: "saliency-grid" });
    this.channelStrip = h("div", { className: "saliency-channels", hidden: true });
    this.channelStrip.setAttribute("role", "group");
    this.channelStrip.addEventListener("keydown", (event) => this.channelKey(event));
    this.channelStrip.addEventListener("focusin", (event) => { this.channelFocus = event.target.dataset.channel; });
    this.channelStrip.addEventListener("focusout", () => { this.channelFocus = null; });
    this.channelStrip.setAttribute("aria-label", "channels of the layer, strongest first");
    this.code = h("textarea", { className: "saliency-code", readOnly: true, hidden: true, rows: 4 });
    this.code.setAttribute("aria-label", "the call that reproduces this view");
    this.root.append(this.lookControls(), this.askControls(), this.status, this.grid, this.channelStrip, this.buttons(), this.code);
    el.append(this.root);
    this.takePicture();
    this.follow();
    this.arrange();
    this.showChannels();
    this.watchKernel();
  }

  /** Without a kernel nothing can be computed: the controls that ask for it say so. */
  async watchKernel() {
    if (!this.live) {
      this.say("Saved view: looking works; other classes, composites and layers need a kernel. Run the cell again.");
      return;
    }
    const real = await this.model.widget_manager?.get_model(this.model.get("key")).catch(() => null);
    if (!real?.on || this.gone) return;
    const follow = () => this.setDead(!real.comm_live);
    real.on("comm_live_update", follow);
    this.unfollow = () => real.off("comm_live_update", follow);
    follow();
  }

  setDead(dead) {
    if (this.dead === dead) return;
    for (const control of this.asking.querySelectorAll("select, input")) control.disabled = dead;
    for (const button of this.root.querySelectorAll(".saliency-channels button, .saliency-account-bars button")) {
      button.disabled = dead;
    }
    this.dead = dead;
    for (const panel of this.panels.values()) {
      panel.cancel.disabled = dead;
      if (panel.info) panel.showCheck(panel.info);
    }
    this.say(dead ? "No kernel: run the cell again to ask for other classes, composites and layers." : "");
  }

  say(text) {
    this.status.textContent = text;
    this.status.hidden = !text;
  }

  /* what the model holds */
  takePicture() {
    this.width = this.model.get("width");
    this.height = this.model.get("height");
    const size = 3 * this.width * this.height;
    this.image = bytesOf(this.model.get("image")).subarray(this.slice * size, (this.slice + 1) * size);
    this.blank = null;
    this.backs = null;
  }

  lut(hasSign = true) {
    return bytesOf(hasSign ? this.model.get("luts")[this.model.get("cmap")] : this.model.get("sequential"));
  }

  backdrop(hasSign) {
    const name = this.model.get("backdrop");
    const key = name === "none" ? `${name} ${hasSign} ${this.model.get("cmap")}` : name;
    this.backs ??= new Map();
    if (!this.backs.has(key)) this.backs.set(key, BACKDROPS[name](this.image, this.lut(hasSign), hasSign));
    return this.backs.get(key);
  }

  nothing() {
    const count = this.width * this.height;
    this.blank ??= { rgb: new Uint8Array(3 * count), alpha: new Float32Array(count) };
    return this.blank;
  }

  on(names, handler) {
    for (const name of names.split(" ")) {
      this.model.on(`change:${name}`, handler);
      this.handlers.push([`change:${name}`, handler]);
    }
  }

  follow() {
    this.on("panels", () => this.arrange());
    for (const [name, look] of Object.entries(this.model.get("looks"))) {
      this.on(name, look.blends ? () => this.redraw() : () => this.recolor());
      this.on(name, () => this.showLook());
    }
    this.on("image", () => { this.takePicture(); this.recolor(); });
    this.on("slice", () => this.showSlice(this.model.get("slice")));
    this.on("frame truth", () => { for (const panel of this.panels.values()) panel.marks.show(); });
    this.on("target top classes composite composites selected methods layer layers", () => this.showAsked());
    this.on("channels channel_maps channel", () => this.showChannels());
  }

  destroy() {
    for (const [name, handler] of this.handlers) this.model.off(name, handler);
    cancelAnimationFrame(this.frame);
    this.gone = true;
    this.resized?.disconnect();
    this.unfollow?.();
  }

  showSlice(slice) {
    this.slice = Math.min(Math.max(slice, 0), this.depth - 1);
    this.sliceSlider.value = this.slice;
    this.sliceText.textContent = `${this.slice + 1} of ${this.depth}`;
    this.takePicture();
    for (const panel of this.panels.values()) panel.cut();
    this.point(this.spot);
  }

  /* drawing: at most once a frame */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      const start = performance.now();
      for (const panel of this.panels.values()) panel.draw();
      this.frame = null;
      this.root.dataset.drawMs = (performance.now() - start).toFixed(2);
    });
  }

  recolor() {
    for (const panel of this.panels.values()) panel.recolor();
    this.point(this.spot);
  }

  arrange() {
    const infos = this.model.get("panels");
    const wanted = new Set(infos.map((info) => info.id));
    for (const [id, panel] of this.panels) {
      if (!wanted.has(id)) {
        panel.node.remove();
        this.model.off(`change:map_${id}`, panel.onmap);
        this.panels.delete(id);
      }
    }
    infos.forEach((info, place) => {
      const panel = this.panels.get(info.id) ?? this.add(info.id);
      panel.describe(info);
      if (this.grid.children[place] !== panel.node) this.grid.insertBefore(panel.node, this.grid.children[place] ?? null);
    });
  }

  add(id) {
    const panel = new Panel(id, this);
    this.panels.set(id, panel);
    panel.onmap = () => { panel.load(this.model.get(`map_${id}`)); panel.mark(this.spot); };
    this.model.on(`change:map_${id}`, panel.onmap);
    this.handlers.push([`change:map_${id}`, panel.onmap]);
    panel.load(this.model.get(`map_${id}`));
    this.place(panel);
    return panel;
  }

  /* linked crosshair, zoom and pan */
  point(spot) {
    this.spot = spot;
    for (const panel of this.panels.values()) panel.mark(spot);
  }

  center() {
    return { x: this.width >> 1, y: this.height >> 1 };
  }

  zoomBy(factor, about = this.spot ?? this.center()) {
    const { scale, x, y } = this.zoom;
    const next = Math.min(Math.max(scale * factor, 1), MAX_ZOOM);
    const fx = (about.x + 0.5) / this.width;
    const fy = (about.y + 0.5) / this.height;
    this.setZoom(next, x + fx * (scale - next), y + fy * (scale - next));
  }

  setZoom(scale, x, y) {
    const inside = (value) => Math.min(Math.max(value, 1 - scale), 0);
    this.zoom = { scale, x: inside(x), y: inside(y) };
    for (const panel of this.panels.values()) this.place(panel);
  }

  place(panel) {
    const { scale, x, y } = this.zoom;
    panel.zoomed.style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${scale})`;
    panel.zoomed.classList.toggle("saliency-magnified", scale > 1);
    panel.zoomed.style.setProperty("--saliency-hair", `${1 / scale}px`);
  }

  startPan(event, canvas) {
    if (this.zoom.scale === 1 || event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    this.panning = { x: event.clientX, y: event.clientY };
    canvas.addEventListener("pointerup", () => { this.panning = null; }, { once: true });
    canvas.addEventListener("pointercancel", () => { this.panning = null; }, { once: true });
  }

  pan(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const { scale, x, y } = this.zoom;
    this.setZoom(scale, x + ((event.clientX - this.panning.x) * scale) / box.width,
      y + ((event.clientY - this.panning.y) * scale) / box.height);
    this.panning = { x: event.clientX, y: event.clientY };
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const actions = { "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8),
      0: () => this.setZoom(1, 0, 0), Escape: () => this.point(null) };
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      const from = this.spot ?? this.center();
      const step = event.shiftKey ? 10 : 1;
      const keep = (value, size) => Math.min(Math.max(value, 0), size - 1);
      this.point({ x: keep(from.x + step * dx, this.width), y: keep(from.y + step * dy, this.height) });
    } else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook takes the arrow keys
  }

  /* controls that only look: nothing is sent */
  lookControls() {
    this.looks = Object.entries(this.model.get("looks")).map(([name, look]) => this.lookControl(name, look));
    this.sliceSlider = h("input", { type: "range", min: 0, max: this.depth - 1, step: 1, value: this.slice,
      oninput: (event) => this.model.set("slice", Number(event.target.value)) });
    this.sliceText = h("output", { textContent: `${this.slice + 1} of ${this.depth}` });
    const slices = labeled("Slice", this.sliceSlider, this.sliceText);
    slices.hidden = this.depth === 1;
    const row = h("div", { className: "saliency-controls" },
      ...this.looks.map(({ label, control, text }) => labeled(label, control, text)), slices);
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", "look");
    this.showLook();
    const folded = h("details", { className: "saliency-looks", open: true }, h("summary", { textContent: "Look" }), row);
    this.resized = new ResizeObserver(([entry]) => {
      const narrow = entry.contentRect.width < NARROW;
      if (narrow !== this.narrow) folded.open = !narrow;
      this.narrow = narrow;
      folded.classList.toggle("saliency-foldable", narrow);
    });
    this.resized.observe(this.root);
    return folded;
  }

  /** A slider, or a selector: of the names given, or of the color maps that are there. */
  lookControl(name, { label, min, max, step, percent, options }) {
    const { model } = this;
    if (step !== undefined) {
      const control = h("input", { type: "range", min, max, step,
        oninput: (event) => model.set(name, Number(event.target.value)) });
      const text = h("output");
      const show = () => {
        control.value = model.get(name);
        text.textContent = percent ? `${Math.round(100 * model.get(name))} %` : model.get(name).toFixed(1);
      };
      return { label, control, text, show };
    }
    const control = h("select", { onchange: (event) => model.set(name, event.target.value) });
    const show = () => {
      const pairs = options ?? Object.keys(model.get("luts")).map((table) => [table, table]);
      if (control.options.length !== pairs.length) optionsOf(control, pairs, model.get(name));
      control.value = model.get(name);
    };
    return { label, control, show };
  }

  showLook() {
    for (const { show } of this.looks) show();
  }

  /* controls that ask the kernel */
  ask(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  cancel(id) {
    this.model.send({ type: "cancel", id });
  }

  askControls() {
    this.topSelect = h("select", { onchange: (event) => this.ask("target", Number(event.target.value)) });
    const listId = `saliency-${Math.random().toString(36).slice(2)}`;
    this.names = h("datalist", { id: listId });
    this.search = h("input", { type: "search", placeholder: "name or number", onchange: () => this.searched(),
      onkeydown: (event) => { if (event.key === "Enter") this.searched(); } });
    this.search.setAttribute("list", listId);
    this.compositeSelect = h("select", { onchange: (event) => this.choseComposite(event.target.value) });
    this.layerSlider = h("input", { type: "range", min: 0, step: 1,
      oninput: () => this.showLayerName(), onchange: () => this.askLayer() });
    this.layerText = h("output", { className: "saliency-layer" });
    this.methodBoxes = h("div", { className: "saliency-methods" });
    this.methodCount = h("summary");
    this.methodList = h("details", { className: "saliency-control" }, this.methodCount, this.methodBoxes);
    this.layerControl = labeled("Layer", this.layerSlider, this.layerText);
    this.layerControl.classList.add("saliency-wide");
    this.asking = h("div", { className: "saliency-controls", hidden: !this.live },
      labeled("Class", this.topSelect), labeled("Find class", this.search), this.names,
      this.compositeControl(), this.methodList, this.layerControl);
    this.asking.setAttribute("role", "group");
    this.asking.setAttribute("aria-label", "what is computed");
    this.showAsked();
    return this.asking;
  }

  compositeControl() {
    this.compositeLine = h("small", { className: "saliency-composite-line", id: `saliency-${Math.random().toString(36).slice(2)}` });
    this.compositeSelect.setAttribute("aria-describedby", this.compositeLine.id);
    const control = labeled("Composite", this.compositeSelect);
    control.append(this.compositeLine);
    return control;
  }

  searched() {
    const given = this.search.value.trim();
    if (!given) return;
    const classes = this.model.get("classes");
    const wanted = given.toLowerCase();
    const lower = classes.map((name) => name.toLowerCase());
    const tests = [(name) => name === wanted, (name) => name.startsWith(wanted), (name) => name.includes(wanted)];
    const byName = tests.map((test) => lower.findIndex(test)).find((index) => index >= 0) ?? -1;
    const byNumber = /^\d+$/.test(given) && Number(given) < this.model.get("class_count") ? Number(given) : -1;
    const index = lower.includes(wanted) || byNumber < 0 ? byName : byNumber;
    this.search.setCustomValidity(index < 0 ? `no class ${given}` : "");
    this.search.reportValidity();
    if (index >= 0) {
      this.search.value = "";
      this.ask("target", index);
    }
  }

  askLayer() {
    this.ask("layer", ["", ...this.model.get("layers")][Number(this.layerSlider.value)]);
  }

  showLayerName() {
    const layers = this.model.get("layers");
    const name = layers[Number(this.layerSlider.value) - 1];
    this.layerText.textContent = name ?? "off";
    this.layerSlider.setAttribute("aria-valuetext", name ?? "off");
  }

  showAsked() {
    const { model } = this;
    const target = model.get("target");
    const top = model.get("top");
    const shown = top.some((entry) => entry.index === target) || target < 0
      ? top : [...top, { index: target, name: className(model, target), probability: null }];
    optionsOf(this.topSelect, shown.map(({ index, name, probability }) =>
      [index, probability == null ? name : `${name}  ${percent(probability)}`]), target);
    const classes = model.get("classes");
    if (this.names.children.length !== classes.length) {
      this.names.replaceChildren(...classes.map((name) => h("option", { value: name })));
    }
    this.showComposites();
    const layers = model.get("layers");
    this.layerSlider.max = layers.length;
    this.layerSlider.value = layers.indexOf(model.get("layer")) + 1;
    this.layerControl.hidden = layers.length === 0;
    this.topSelect.parentElement.hidden = top.length === 0;
    this.search.parentElement.hidden = model.get("class_count") <= top.length;
    this.showLayerName();
    this.showMethods();
  }

  /** The first group, and the others where they are asked for or hold the composite that is shown. */
  showComposites() {
    const composite = this.model.get("composite");
    const groups = this.model.get("composite_groups") ?? [];
    const lines = new Map(groups.flatMap(([, entries]) => entries));
    const grouped = groups.length ? groups : [["", this.model.get("composites").map((name) => [name, ""])]];
    const [first, ...others] = grouped;
    const all = this.allComposites || !first[1].some(([name]) => name === composite);
    const group = ([label, entries]) => {
      const options = entries.map(([name, line]) => h("option", { value: name, textContent: name, title: line }));
      return label ? h("optgroup", { label }, ...options) : options;
    };
    const more = all || !others.length ? [] : [h("option", { value: MORE, textContent: "more…" })];
    this.compositeSelect.replaceChildren(...[first, ...(all ? others : [])].flatMap(group), ...more);
    this.compositeSelect.value = composite;
    this.compositeSelect.title = lines.get(composite) ?? "";
    this.compositeLine.textContent = lines.get(composite) ?? "";
  }

  choseComposite(name) {
    if (name !== MORE) {
      this.ask("composite", name);
      return;
    }
    this.allComposites = true;
    this.showComposites();
    try {
      this.compositeSelect.showPicker();
    } catch { // not everywhere: the next click opens it
    }
  }

  showMethods() {
    const selected = this.model.get("selected");
    this.methodCount.textContent = `Methods: ${selected.length} shown`;
    const focused = this.methodBoxes.contains(document.activeElement) ? document.activeElement.value : null;
    this.methodBoxes.replaceChildren(...this.model.get("methods").map((name) => {
      const box = h("input", { type: "checkbox", value: name, checked: selected.includes(name),
        onchange: () => this.chose(name, box.checked) });
      return h("label", {}, box, name);
    }));
    if (focused) [...this.methodBoxes.querySelectorAll("input")].find((box) => box.value === focused)?.focus();
  }

  chose(name, on) {
    const rest = this.model.get("selected").filter((other) => other !== name);
    this.ask("selected", on ? [...rest, name] : rest);
  }

  /* channels of the chosen layer: a click asks for the concept map */
  showChannels() {
    const channels = this.model.get("channels");
    this.channelStrip.hidden = channels.length === 0;
    if (!channels.length) {
      this.channelStrip.replaceChildren();
      return;
    }
    const [height, width] = this.model.get("channel_size");
    const values = floatsOf(this.model.get("channel_maps"));
    const limit = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const chosen = this.model.get("channel");
    const heading = h("span", { textContent: `Channels of ${this.model.get("layer")}` });
    this.channelStrip.replaceChildren(heading, ...channels.map(({ index, relevance, share }, place) =>
      this.channelButton(index, relevance, share, values.subarray(place * height * width, (place + 1) * height * width),
        [height, width, limit], chosen)));
    const buttons = [...this.channelStrip.querySelectorAll("button")];
    const stop = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
    for (const button of buttons) button.tabIndex = button === stop ? 0 : -1;
    if (this.channelFocus) buttons.find((button) => button.dataset.channel === this.channelFocus)?.focus();
  }

  /** Arrow keys go from channel to channel, so that all of them are one tab stop. */
  channelKey(event) {
    const buttons = [...this.channelStrip.querySelectorAll("button")];
    const here = buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || here < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = buttons[Math.min(Math.max(to, 0), buttons.length - 1)];
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  }

  channelButton(index, relevance, share, values, [height, width, limit], chosen) {
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    const { rgb, alpha } = colorise(values, limit, "both", this.lut());
    for (let i = 0; i < values.length; i++) { // nothing is the theme's ground
      pixels.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], Math.round(255 * alpha[i])], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
    const on = index === chosen;
    const button = h("button", { type: "button", disabled: !this.live || this.dead,
      onclick: () => this.ask("channel", on ? -1 : index) }, canvas,
      h("span", { textContent: `${index}` }), h("small", { textContent: percent(share) }));
    button.dataset.channel = index;
    button.setAttribute("aria-pressed", on);
    button.setAttribute("aria-label", `channel ${index}, relevance ${signed(relevance)}`);
    return button;
  }

  /* taking the view away */
  buttons() {
    const button = (text, onclick) => h("button", { type: "button", textContent: text, onclick });
    const row = h("div", { className: "saliency-buttons" },
      button("Copy as code", () => this.copyCode()), button("Save PNG", () => this.savePng()),
      button("Save HTML", () => this.saveHtml()), button("Reset zoom", () => this.setZoom(1, 0, 0)));
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", "take away");
    return row;
  }

  callText() {
    const { model } = this;
    const quoted = (value) => JSON.stringify(value);
    const tuple = (names) => `(${names.map(quoted).join(", ")}${names.length === 1 ? "," : ""})`;
    const parts = [...model.get("code"), `methods=${tuple(model.get("selected"))}`];
    if (model.get("target") >= 0) parts.push(`label=${model.get("target")}`);
    const composite = model.get("composite");
    if (composite) parts.push(`composite=${composite === model.get("own_composite") ? "composite" : quoted(composite)}`);
    if (model.get("layer")) parts.push(`layer=${quoted(model.get("layer"))}`);
    if (model.get("channel") >= 0) parts.push(`channel=${model.get("channel")}`);
    for (const [name, { digits }] of Object.entries(model.get("looks"))) {
      const value = model.get(name);
      parts.push(`${name}=${digits === undefined ? quoted(value) : +value.toFixed(digits)}`);
    }
    return `compare_saliency(${parts.join(", ")})`;
  }

  async copyCode() {
    this.code.value = this.callText();
    this.code.hidden = false;
    this.code.select();
    try {
      await navigator.clipboard.writeText(this.code.value);
    } catch { // no permission or no secure context: the text is selected, ready to be copied
    }
  }

  savePng() {
    const panels = [...this.panels.values()];
    const columns = Math.min(panels.length, 4);
    const rows = Math.ceil(panels.length / columns);
    const zoom = Math.max(1, Math.round(448 / this.width));
    const [w, t, gap] = [this.width * zoom, this.height * zoom, 12];
    const sheet = h("canvas", { width: columns * (w + gap) + gap, height: rows * (t + gap + 24) + gap });
    const context = sheet.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, sheet.width, sheet.height);
    context.fillStyle = "#111111";
    context.font = "16px sans-serif";
    context.imageSmoothingEnabled = zoom > 1 ? false : true;
    panels.forEach((panel, place) => {
      const left = gap + (place % columns) * (w + gap);
      const top = gap + Math.floor(place / columns) * (t + gap + 24);
      context.fillText(panel.title.textContent, left, top + 16, w);
      context.drawImage(panel.canvas, left, top + 24, w, t);
      context.save();
      context.translate(left, top + 24);
      context.scale(zoom, zoom);
      context.lineWidth = 2 / zoom;
      for (const [name, path] of marksOf(this.model)) {
        context.setLineDash(name === "frame" ? [6 / zoom, 4 / zoom] : []);
        context.strokeStyle = name === "frame" ? "#333333" : "#00a651";
        context.stroke(new Path2D(path));
      }
      context.restore();
    });
    sheet.toBlob((blob) => download(blob, "saliency.png"), "image/png");
  }

  state() {
    const names = [...this.model.get("saved"), "_css", ...[...this.panels.keys()].map((id) => `map_${id}`)];
    const panels = this.model.get("panels").map((info) =>
      (isUnfinished(info.state) ? { ...info, state: "not computed" } : info));
    return { ...Object.fromEntries(names.map((name) => [name, this.model.get(name)])), panels, live: false };
  }

  async saveHtml() {
    const json = await packed(this.state());
    const page = fillPage(this.model.get("page"), json, this.model.get("_esm"), this.model.get("_css"));
    download(new Blob([page], { type: "text/html" }), "saliency.html");
  }
}

/* ---------- a page of its own: the same view with no kernel (page.py packs the same way) ---------- */

const ROOT_STEPS = 511; // of the square root of |R|, on either side of zero

function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function piped(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

const EXACT = 20000; // values up to which a map is kept as it is

async function packedMap(values) {
  if (values.length <= EXACT) {
    return { floats: toBase64(await piped(new Uint8Array(values.buffer), new CompressionStream("deflate"))) };
  }
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const planes = new Uint8Array(2 * values.length); // all low bytes before all high ones
  let before = 0;
  for (let i = 0; i < values.length; i++) {
    const step = Math.sign(values[i]) * Math.round(ROOT_STEPS * Math.sqrt(Math.abs(values[i]) / (largest || 1)));
    const folded = step < before ? 2 * (before - step) - 1 : 2 * (step - before); // the sign is the lowest bit
    planes[i] = folded & 255;
    planes[values.length + i] = folded >> 8;
    before = step;
  }
  const packed = await piped(planes, new CompressionStream("deflate"));
  return { steps: toBase64(packed), largest };
}

async function unpackedMap({ steps, largest }) {
  const planes = await piped(fromBase64(steps), new DecompressionStream("deflate"));
  const values = new Float32Array(planes.length >> 1);
  let step = 0;
  for (let i = 0; i < values.length; i++) {
    const folded = planes[i] + 256 * planes[values.length + i];
    step += folded & 1 ? -(folded + 1) / 2 : folded / 2;
    values[i] = (largest * step * Math.abs(step)) / (ROOT_STEPS * ROOT_STEPS);
  }
  return new Uint8Array(values.buffer);
}

const LOSSLESS = 64000; // bytes up to which a picture is kept as it is

function packedPicture(rgb, width, height) {
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) pixels.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  context.putImageData(pixels, 0, 0);
  const exact = canvas.toDataURL("image/png");
  return { picture: exact.length * 0.75 <= LOSSLESS ? exact : canvas.toDataURL("image/jpeg", 0.9) };
}

async function unpackedPicture({ picture }, width, height) {
  const image = new Image();
  image.src = picture;
  await image.decode();
  const context = h("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) rgb.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  return rgb;
}

async function packed(state) {
  const out = {};
  for (const [name, value] of Object.entries(state)) {
    if (name === "image") out[name] = packedPicture(bytesOf(value), state.width, state.height * (state.depth ?? 1));
    else if (name.startsWith("map_") || name === "channel_maps") out[name] = await packedMap(floatsOf(value));
    else out[name] = value;
  }
  return JSON.stringify(out, (key, value) =>
    ArrayBuffer.isView(value) || value instanceof ArrayBuffer ? { base64: toBase64(bytesOf(value)) } : value);
}

async function unpacked(json) {
  const state = JSON.parse(json, (key, value) => (typeof value?.base64 === "string" ? fromBase64(value.base64) : value));
  for (const [name, value] of Object.entries(state)) {
    if (typeof value?.floats === "string") {
      state[name] = await piped(fromBase64(value.floats), new DecompressionStream("deflate"));
    } else if (typeof value?.steps === "string") state[name] = await unpackedMap(value);
    else if (typeof value?.picture === "string") state[name] = await unpackedPicture(value, state.width, state.height * (state.depth ?? 1));
  }
  return state;
}

function fillPage(template, json, esm, css) {
  const safe = (text) => text.replaceAll("<", "\\u003c"); // a JSON text has "<" in strings only
  const fields = { STATE: safe(json), MODULE: safe(JSON.stringify(esm)), STYLE: css };
  return template.replace(/__(STATE|MODULE|STYLE)__/g, (whole, name) => fields[name]);
}

/** A model that lives in the page alone: what a saved HTML file gives to render(). */
export class PageModel {
  constructor(state) {
    this.values = state;
    this.listeners = new Map();
  }
  get(name) { return this.values[name]; }
  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    for (const listener of [...(this.listeners.get(`change:${name}`) ?? [])]) listener();
  }
  on(name, listener) {
    if (!this.listeners.has(name)) this.listeners.set(name, new Set());
    this.listeners.get(name).add(listener);
  }
  off(name, listener) { this.listeners.get(name)?.delete(listener); }
  save_changes() {}
  send() {}
}

/** In a frame of a notebook: as high as the view, in the notebook's colors. */
function fitFrame(el) {
  const frame = window.frameElement;
  if (!frame) return;
  const outside = frame.ownerDocument;
  const light = outside.body.dataset.jpThemeLight;
  if (light) {
    document.body.dataset.jpThemeLight = light;
    document.documentElement.style.colorScheme = light === "true" ? "light" : "dark";
    const theme = getComputedStyle(outside.body);
    for (const name of THEME) document.body.style.setProperty(name, theme.getPropertyValue(name));
  }
  document.body.style.margin = "0";
  new ResizeObserver(() => { frame.style.height = `${el.scrollHeight + 4}px`; }).observe(el);
}

const THEME = ["ui-font-color1", "ui-font-color2", "layout-color1", "layout-color2", "border-color2", "brand-color1",
  "warn-color0", "ui-font-family"].map((name) => `--jp-${name}`);

export async function startPage(json, esm, el) {
  const state = await unpacked(json);
  state._esm = esm;
  render({ model: new PageModel(state), el });
  try {
    fitFrame(el);
  } catch { // a frame that may not look out keeps its height
  }
}

function render({ model, el }) {
  const board = new Board(model, el);
  return () => board.destroy();
}

export default { render };
