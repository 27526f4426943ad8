// Runs trained networks from their layers and weights, which page.py writes.
//
// An array is {shape, data}, with its last axis contiguous. An image is [H,W,C], the
// rows of an image are [T,D], and all else is [D].

function zeros(shape) {
  return {shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1))};
}

const ACTIVATIONS = {
  relu: x => Math.max(x, 0),
  tanh: Math.tanh,
  linear: x => x,
};
const sigmoid = x => 1 / (1 + Math.exp(-x));

// Adds x[from..] times the matrix `kernel [D,F]`, from its row `row` on, to `out [F]`.
function addProduct(out, x, from, count, kernel, row) {
  const width = out.length;
  for (let d = 0; d < count; d++) {
    const value = x[from + d];
    if (value === 0) continue;  // most pixels, and half of what a ReLU returns
    const start = (row + d) * width;
    for (let f = 0; f < width; f++) out[f] += value * kernel[start + f];
  }
}

function dense(x, {kernel, bias, activation}) {
  const sums = Float64Array.from(bias.data);
  addProduct(sums, x.data, 0, x.data.length, kernel.data, 0);
  return {shape: [sums.length], data: Float32Array.from(sums, ACTIVATIONS[activation])};
}

// The length of an output axis, and the padding before its first input.
function outputSize(size, kernel, strides, padding) {
  if (padding === "VALID") return [Math.floor((size - kernel) / strides) + 1, 0];
  const out = Math.ceil(size / strides);
  return [out, Math.max((out - 1) * strides + kernel - size, 0) >> 1];
}

function conv(x, {kernel, bias, strides, padding, activation}) {
  const [height, width, channels] = x.shape, [side, , , filters] = kernel.shape;
  const [rows, above] = outputSize(height, side, strides, padding);
  const [columns, left] = outputSize(width, side, strides, padding);
  const out = zeros([rows, columns, filters]), sums = new Float64Array(filters);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      sums.set(bias.data);
      for (let tap = 0; tap < side * side; tap++) {
        const y = row * strides - above + Math.floor(tap / side);
        const x0 = column * strides - left + tap % side;
        if (y < 0 || y >= height || x0 < 0 || x0 >= width) continue;
        const from = (y * width + x0) * channels;
        addProduct(sums, x.data, from, channels, kernel.data, tap * channels);
      }
      out.data.set(sums.map(ACTIVATIONS[activation]), (row * columns + column) * filters);
    }
  }
  return out;
}

function maxPool(x, {size}) {
  const [height, width, channels] = x.shape;
  const rows = Math.floor(height / size), columns = Math.floor(width / size);
  const out = zeros([rows, columns, channels]);
  out.data.fill(-Infinity);
  for (let y = 0; y < rows * size; y++) {
    for (let x0 = 0; x0 < columns * size; x0++) {
      const to = (Math.floor(y / size) * columns + Math.floor(x0 / size)) * channels;
      const from = (y * width + x0) * channels;
      for (let c = 0; c < channels; c++) {
        out.data[to + c] = Math.max(out.data[to + c], x.data[from + c]);
      }
    }
  }
  return out;
}

function batchNorm(x, {scale, bias}) {
  const c = index => index % bias.data.length;
  const data = x.data.map((value, n) => value * scale.data[c(n)] + bias.data[c(n)]);
  return {shape: x.shape, data};
}

// The gates are ordered input, forget, candidate, output.
function lstm(x, {kernel, recurrent_kernel, bias, activation, sequences}) {
  const [steps, inputs] = x.shape, units = recurrent_kernel.shape[0];
  const activate = ACTIVATIONS[activation], states = zeros([steps, units]);
  const gates = new Float64Array(4 * units);
  const h = new Float64Array(units), c = new Float64Array(units);
  for (let step = 0; step < steps; step++) {
    gates.set(bias.data);
    addProduct(gates, x.data, step * inputs, inputs, kernel.data, 0);
    addProduct(gates, h, 0, units, recurrent_kernel.data, 0);
    for (let u = 0; u < units; u++) {
      const [i, f, o] = [0, 1, 3].map(gate => sigmoid(gates[gate * units + u]));
      c[u] = f * c[u] + i * activate(gates[2 * units + u]);
      h[u] = o * activate(c[u]);
    }
    states.data.set(h, step * units);
  }
  return sequences ? states : {shape: [units], data: Float32Array.from(h)};
}

const LAYERS = {dense, conv, maxPool, batchNorm, lstm, flatten: x => x};

// As `Preprocess` in data/pixels.py.
function scalePixels(pixels, {kind, mean, std}) {
  const values = Float32Array.from(pixels);
  if (kind === "raw") return values;
  if (kind === "scaled") return values.map(value => value / 255);
  if (kind === "standardized") return values.map(value => (value / 255 - mean) / std);
  const norms = new Float64Array(SIDE);
  values.forEach((value, index) => { norms[index % SIDE] += value * value; });
  return values.map((value, index) => value / (Math.sqrt(norms[index % SIDE]) || 1));
}

function cropImage(data, border) {
  const side = SIDE - 2 * border, out = zeros([side, side, 1]);
  for (let y = 0; y < side; y++) {
    const start = SIDE * (y + border) + border;
    out.data.set(data.subarray(start, start + side), y * side);
  }
  return out;
}

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, logit => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

// Returns a network's ten probabilities of an image of 28x28 grey levels, 0..255.
function predict({pixels: scaling, crop, layers}, pixels) {
  let x = cropImage(scalePixels(pixels, scaling), crop);
  for (const layer of layers) x = LAYERS[layer.kind](x, layer);
  return softmax(x.data);
}

// Decodes an array: a shape and little-endian float32 numbers in Base64.
function decodeArray({shape, base64}) {
  const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0));
  return {shape, data: new Float32Array(bytes.buffer)};
}

const NETWORKS = JSON.parse(document.getElementById("networks").textContent,
  (_, value) => value?.base64 === undefined ? value : decodeArray(value));
