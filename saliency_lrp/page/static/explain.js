// The page: a picture comes in, class and map come out; another class is another run of the same graph.

import { BACKDROPS, blend, colorise, colorLimit, sortedMagnitudes } from "./overlay.js";
import { prepare, read } from "./picture.js";
import { explain, load, overChannels, probabilities, settings } from "./model.js";

const MOST = 5; // classes that are told
const lut = Uint8Array.from(settings.colors);
const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** What is on the page now. */
const state = { seen: null, input: null, values: null, limit: 0, target: -1, turn: 0 };

function say(text, isWrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", isWrong);
}

/** Three channels of what the model sees. */
function colorBytes({ data, channels }) {
  if (channels === 3) return data;
  const out = new Uint8Array(3 * data.length);
  for (let i = 0; i < data.length; i++) out.fill(data[i], 3 * i, 3 * i + 3);
  return out;
}

/** The picture with the map over it. */
function draw() {
  if (!state.seen) return;
  const { width, height } = state.seen;
  const canvas = $("map");
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.classList.toggle("coarse", Math.max(width, height) < 160);
  const rgb = colorBytes(state.seen);
  const image = new ImageData(width, height);
  const values = state.values ?? new Float32Array(width * height);
  const backdrop = BACKDROPS[$("grey").checked && state.values ? "gray" : "color"](rgb);
  blend(image.data, backdrop, colorise(values, state.limit, "both", lut), Number($("opacity").value));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Where the strongest pixel for the class lies, in words, for who cannot see the map. */
function whereStrongest() {
  const { width, height } = state.seen;
  let best = 0;
  state.values.forEach((v, i) => { if (v > state.values[best]) best = i; });
  const third = (at, side, names) => names[Math.min(2, Math.floor((3 * at) / side))];
  const row = third(Math.floor(best / width), height, ["upper", "middle", "lower"]);
  const column = third(best % width, width, ["left", "centre", "right"]);
  return row === "middle" && column === "centre" ? "in the middle" : `in the ${row} ${column}`;
}

function listClasses(scores) {
  const shares = probabilities(scores);
  const order = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]).slice(0, MOST);
  if (!order.includes(state.target)) order.push(state.target);
  $("classes").replaceChildren(
    ...order.map((k) => {
      const row = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), {
        type: "radio", name: "class", value: k, checked: k === state.target,
      });
      radio.addEventListener("change", () => show(k));
      const name = Object.assign(document.createElement("span"), { className: "name", textContent: settings.classes[k] });
      const share = Object.assign(document.createElement("span"), { className: "share", textContent: percent(shares[k]) });
      const bar = Object.assign(document.createElement("meter"), { min: 0, max: 1, value: shares[k] });
      bar.setAttribute("aria-hidden", "true");
      row.append(radio, name, share, bar);
      return row;
    }),
  );
  return shares;
}

/** Explain a class of the picture on the page; below 0 the model's own answer. */
async function show(target) {
  const turn = ++state.turn;
  const started = performance.now();
  document.body.setAttribute("aria-busy", "true");
  say("Explaining …");
  await new Promise((done) => setTimeout(done)); // the words are seen before the thread is busy
  try {
    const { scores, relevance } = await explain(state.input, target);
    if (turn !== state.turn) return; // another picture or class was asked for meanwhile
    state.target = target < 0 ? scores.indexOf(Math.max(...scores)) : target;
    state.values = overChannels(relevance, settings.preprocessing.channels);
    state.limit = colorLimit(sortedMagnitudes(state.values), settings.percentile);
    const focused = document.activeElement?.name === "class";
    const shares = listClasses(scores);
    if (focused) document.querySelector("#classes input:checked").focus();
    const name = settings.classes[state.target];
    $("answer").textContent = `${name}, ${percent(shares[state.target])}`;
    $("map").setAttribute("aria-label", `What speaks for ${name} (red) and against it (blue); strongest ${whereStrongest()}.`);
    $("result").hidden = false;
    draw();
    say(`${name}: what speaks for it is strongest ${whereStrongest()}. ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (turn === state.turn) say(`This could not be explained: ${error.message}`, true);
  } finally {
    if (turn === state.turn) document.body.removeAttribute("aria-busy");
  }
}

/** Take a picture in. */
export async function take(blob) {
  say("Reading the picture …");
  try {
    Object.assign(state, prepare(await read(blob), settings.preprocessing), { values: null });
  } catch {
    say("This is no picture that the browser can read; PNG, JPEG and WebP work.", true);
    return;
  }
  $("result").hidden = false;
  draw();
  await ready;
  await show(-1);
}

function listen() {
  const drop = $("drop");
  $("file").addEventListener("change", (event) => event.target.files[0] && take(event.target.files[0]));
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
  document.addEventListener("dragover", () => drop.classList.add("over"));
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(file);
    else say("Drop a file: what was dropped holds none.", true);
  });
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]));
  $("opacity").addEventListener("input", draw);
  $("grey").addEventListener("change", draw);
}

function decorate() {
  document.title = `${settings.title}: what speaks for its answer`;
  $("title").textContent = settings.title;
  $("composite").textContent = settings.composite;
  $("opacity").value = settings.opacity;
  $("examples").hidden = !settings.examples.length;
  settings.examples.forEach((name, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(Object.assign(document.createElement("img"), { src: name, alt: `example ${k + 1}` }));
    button.addEventListener("click", async () => take(await fetch(name).then((found) => found.blob())));
    $("examples").append(button);
  });
  const scale = $("scale");
  const context = scale.getContext("2d");
  for (let i = 0; i < 256; i++) {
    context.fillStyle = `rgb(${lut[3 * i]} ${lut[3 * i + 1]} ${lut[3 * i + 2]})`;
    context.fillRect(i, 0, 1, 1);
  }
}

decorate();
listen();
const megabytes = (settings.bytes / 1e6).toFixed(settings.bytes < 1e7 ? 1 : 0);
const ready = load((share) => say(`Loading the model (${megabytes} MB): ${percent(share)}`)).then(
  () => say("Ready: choose a picture."),
);
ready.then(
  () => { document.body.dataset.ready = "true"; },
  (error) => say(`The model could not be loaded: ${error.message}`, true),
);
