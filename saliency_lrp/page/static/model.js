// The model and its explanation: one ONNX graph, run by ONNX Runtime on one thread, with nothing but this folder.

import * as ort from "./ort.js";

const here = (name) => new URL(name, import.meta.url).href;

export const settings = await fetch(here("settings.json")).then((found) => found.json());

/** Read a file, telling how much of it is there. */
async function bytesOf(name, total, told) {
  const reader = (await fetch(here(name))).body.getReader();
  const parts = [];
  let got = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    got += value.length;
    told(Math.min(1, got / total));
  }
}

let session;

/** Load the model once. */
export async function load(told = () => {}) {
  if (session) return;
  ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
  ort.env.wasm.wasmPaths = { wasm: here("ort.wasm") };
  const graph = await bytesOf("model.onnx", settings.bytes, told);
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
}

/** Scores (classes) and relevance of each input value; a class below 0 stands for the model's own answer. */
export async function explain(input, target = -1) {
  const { size, channels } = settings.preprocessing;
  const found = await session.run({
    input: new ort.Tensor("float32", input, [1, channels, ...size]),
    target: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
  });
  return { scores: found.output.data, relevance: found.relevance.data };
}

/** Relevance of pixels: the sum over channels. */
export function overChannels(relevance, channels) {
  const pixels = relevance.length / channels;
  return Float32Array.from({ length: pixels }, (_, i) => {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += relevance[c * pixels + i];
    return sum;
  });
}

/** Probabilities; scores that are some already stay as they are. */
export function probabilities(scores) {
  const total = scores.reduce((a, b) => a + b, 0);
  if (scores.every((s) => s >= 0) && Math.abs(total - 1) < 1e-3) return Array.from(scores);
  const most = Math.max(...scores);
  const shares = Array.from(scores, (s) => Math.exp(s - most));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((s) => s / sum);
}
