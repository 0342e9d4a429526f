// From a picture to the model's input: the same arithmetic as the package's, to the last bit.

const BITS = 22; // of fractions in Pillow's resampling of bytes

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      const a = -0.5;
      const t = Math.abs(x);
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
  },
};

/** Where each output position reads from along one side, and by which weights (whole numbers, 2^22 is one). */
function taps(from, to, filter) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const reach = filter.support * stretch;
  const narrow = 1 / stretch;
  return Array.from({ length: to }, (_, k) => {
    const centre = (k + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(filter.at((x - centre + 0.5) * narrow));
    const total = weights.reduce((a, b) => a + b, 0);
    const whole = weights.map((w) => Math.trunc((w / total) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(whole) };
  });
}

/** Resize along one axis: `lines` lines, `step` apart, of elements `stride` apart. */
function along(source, channels, from, to, lines, lineStep, stride, outLineStep, outStride, out, filter) {
  const all = taps(from, to, filter);
  for (let line = 0; line < lines; line++) {
    for (let k = 0; k < to; k++) {
      const { first, weights } = all[k];
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        let at = line * lineStep + first * stride + c;
        for (let j = 0; j < weights.length; j++, at += stride) sum += source[at] * weights[j];
        out[line * outLineStep + k * outStride + c] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
      }
    }
  }
}

/** Resize bytes (height, width, channels) as Pillow does: antialiased, across first, rounded in between. */
export function resize({ data, width, height, channels }, toHeight, toWidth, interpolation) {
  if (width === toWidth && height === toHeight) return { data, width, height, channels };
  if (interpolation === "nearest") {
    const out = new Uint8Array(toHeight * toWidth * channels);
    for (let y = 0; y < toHeight; y++) {
      const row = Math.trunc((y + 0.5) * (height / toHeight));
      for (let x = 0; x < toWidth; x++) {
        const column = Math.trunc((x + 0.5) * (width / toWidth));
        for (let c = 0; c < channels; c++) {
          out[(y * toWidth + x) * channels + c] = data[(row * width + column) * channels + c];
        }
      }
    }
    return { data: out, width: toWidth, height: toHeight, channels };
  }
  const filter = FILTERS[interpolation];
  let across = data;
  if (width !== toWidth) {
    across = new Uint8Array(height * toWidth * channels);
    along(data, channels, width, toWidth, height, width * channels, channels, toWidth * channels, channels, across, filter);
  }
  let down = across;
  if (height !== toHeight) {
    down = new Uint8Array(toHeight * toWidth * channels);
    along(across, channels, height, toHeight, toWidth, channels, toWidth * channels, channels, toWidth * channels, down, filter);
  }
  return { data: down, width: toWidth, height: toHeight, channels };
}

/** Height and width after resizing: the shorter side (the longer one to fit) gets the length, or both are given. */
export function resizedSize(height, width, { resize: to, fit }) {
  if (to == null) return [height, width];
  if (Array.isArray(to)) return to;
  const reference = fit ? Math.max(height, width) : Math.min(height, width);
  return [height, width].map((side) => (side === reference ? to : Math.floor((to * side) / reference)));
}

/** Where a centre crop starts; halves go to the even number, as in Python. */
function cropStart(side, want) {
  if (want > side) return -Math.floor((want - side) / 2);
  const half = (side - want) / 2;
  const below = Math.floor(half);
  return half === below ? half : below + (below % 2);
}

/** The centre, filled up with black where the picture is smaller. */
export function centreCrop({ data, width, height, channels }, toHeight, toWidth) {
  const out = new Uint8Array(toHeight * toWidth * channels);
  const top = cropStart(height, toHeight);
  const left = cropStart(width, toWidth);
  for (let y = Math.max(0, -top); y < Math.min(toHeight, height - top); y++) {
    for (let x = Math.max(0, -left); x < Math.min(toWidth, width - left); x++) {
      const from = ((y + top) * width + x + left) * channels;
      out.set(data.subarray(from, from + channels), (y * toWidth + x) * channels);
    }
  }
  return { data: out, width: toWidth, height: toHeight, channels };
}

/** Luminance, for a model of one channel. */
export function greyOf({ data, width, height }) {
  const out = new Uint8Array(width * height);
  for (let i = 0, p = 0; i < out.length; i++, p += 3) {
    out[i] = Math.round(0.299 * data[p] + 0.587 * data[p + 1] + 0.114 * data[p + 2]);
  }
  return { data: out, width, height, channels: 1 };
}

/** What the model sees of a picture (bytes, 3 channels), and that as its input (channels first, float32). */
export function prepare(picture, settings) {
  const { size: [height, width], channels, mean, std, interpolation } = settings;
  const read = channels === 1 ? greyOf(picture) : picture;
  const seen = centreCrop(resize(read, ...resizedSize(read.height, read.width, settings), interpolation), height, width);
  const input = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    const [m, s] = [Math.fround(mean[c]), Math.fround(std[c])];
    for (let i = 0; i < height * width; i++) {
      const value = Math.fround(seen.data[i * channels + c] / 255);
      input[c * height * width + i] = Math.fround(value - m) / s;
    }
  }
  return { seen, input };
}

/** The bytes of a picture, upright, what is see-through on white. */
export async function read(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let p = 0, q = 0; p < data.length; p += 3, q += 4) {
    data[p] = rgba[q];
    data[p + 1] = rgba[q + 1];
    data[p + 2] = rgba[q + 2];
  }
  return { data, width, height, channels: 3 };
}
