"use strict";
// Converts a drawing to MNIST's format with the steps of data/user_images.py, which
// has the reasons. Tests compare the two.
//
// A grid is {height, width, data}, with its rows one after the other in `data`.

const MIN_CONTRAST = 32, INK_FLOOR = 0.25, MAX_UNEVEN = 0.1, SPECK = 0.03;
const BOX = 20, FINE = 8 * BOX, MIN_STROKE = 1.75;

function grid(height, width, data = new Float32Array(height * width)) {
  return {height, width, data};
}

function like({height, width}, data) {
  return grid(height, width, data);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Rounds halves to even, as Python and NumPy do.
function round(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function maximum(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

// The brightness of an opaque canvas. Its ink and its background are grey, so that no
// colour has more contrast.
function brightness(canvas) {
  const {width, height} = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  return grid(height, width, Float32Array.from({length: width * height}, (_, index) =>
    0.299 * rgba[4 * index] + 0.587 * rgba[4 * index + 1] + 0.114 * rgba[4 * index + 2]
  ));
}

// Solves the normal equations of a least-squares fit by Gaussian elimination.
function leastSquares(rows, values) {
  const size = rows[0].length;
  const system = Array.from({length: size}, (_, i) => [
    ...Array.from({length: size}, (_, j) =>
      rows.reduce((sum, row) => sum + row[i] * row[j], 0)),
    rows.reduce((sum, row, index) => sum + row[i] * values[index], 0),
  ]);
  for (let pivot = 0; pivot < size; pivot++) {
    const best = maximum(system.slice(pivot).map(row => Math.abs(row[pivot])));
    const from = system.findIndex((row, n) => n >= pivot && Math.abs(row[pivot]) === best);
    [system[pivot], system[from]] = [system[from], system[pivot]];
    for (let row = 0; row < size; row++) {
      if (row === pivot) continue;
      const factor = system[row][pivot] / system[pivot][pivot];
      system[row] = system[row].map((value, n) => value - factor * system[pivot][n]);
    }
  }
  return system.map((row, n) => row[size] / row[n]);
}

function borderIndices({height, width}) {
  const depth = Math.max(1, Math.floor(Math.min(height, width) / 25));
  const outside = (n, size) => n < depth || n >= size - depth;
  return [...Array(height * width).keys()].filter(index =>
    outside(Math.floor(index / width), height) || outside(index % width, width));
}

// Means of 3x3 pixels; outside the grid, its nearest pixels count.
function smooth({height, width, data}) {
  const means = grid(height, width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let dy = -1; dy <= 1; dy++) {
        const row = clamp(y + dy, 0, height - 1) * width;
        for (let dx = -1; dx <= 1; dx++) sum += data[row + clamp(x + dx, 0, width - 1)];
      }
      means.data[y * width + x] = sum / 9;
    }
  }
  return means;
}

// Subtracts a plane fitted to the border.
function subtractBackground(grey) {
  const {height, width, data} = grey, border = borderIndices(grey);
  const down = index => 2 * Math.floor(index / width) / (height - 1) - 1;
  const right = index => 2 * (index % width) / (width - 1) - 1;
  const at = ([a, b, c], index) => a + b * down(index) + c * right(index);
  let plane = [median(border.map(index => data[index])), 0, 0], noise = 0;
  for (let repeat = 0; repeat < 3; repeat++) {
    const residual = index => Math.abs(data[index] - at(plane, index));
    noise = 1.4826 * median(border.map(residual));
    const near = border.filter(index => residual(index) <= Math.max(16, 3 * noise));
    if (near.length >= 3) {
      const terms = near.map(index => [1, down(index), right(index)]);
      plane = leastSquares(terms, near.map(index => data[index]));
    }
  }
  const difference = data.map((value, index) => value - at(plane, index));
  const uneven = mean(border.map(n => Math.abs(difference[n]) > MIN_CONTRAST ? 1 : 0));
  const smoothed = smooth(like(grey, difference)).data;
  const high = maximum(smoothed), low = -maximum(smoothed.map(value => -value));
  const sign = high > -low ? 1 : -1, contrast = Math.max(high, -low);
  const ink = like(grey, difference.map(value => sign * value));
  return {ink, contrast, noise, uneven};
}

// The amount of ink: 0 on the background and about 1 in a stroke; and a warning.
function findInk(grey) {
  const {ink, contrast, noise, uneven} = subtractBackground(grey);
  if (contrast < MIN_CONTRAST) throw new Error("the drawing is blank; draw a digit.");
  const level = median(ink.data.filter(value => value > contrast / 2));
  const floor = Math.min(Math.max(INK_FLOOR, 4 * noise / level), 0.5);
  const amounts = ink.data.map(value => clamp(value / level, 0, 1));
  const found = like(ink, amounts.map(value => value < floor ? 0 : value));
  const clean = removeSpecks(found);
  return {ink: clean, warning: findDoubt(clean, uneven)};
}

function findDoubt(ink, uneven) {
  if (uneven > MAX_UNEVEN || isSheet(ink)) {
    return "the drawing may show more than a digit, and the prediction may be wrong; "
      + "draw thin strokes, with a margin around the digit";
  }
  if (digitsApart(ink)) {
    return "the drawing may show several digits, which are read as one; draw a single "
      + "digit";
  }
  return "";
}

// Numbers the connected components of the pixels in `mask`, from 1; the others are 0.
// Neighbours are the four at the sides, or also the four at the corners.
function label({height, width, data: mask}, corners = true) {
  const labels = new Int32Array(mask.length), stack = [];
  let count = 0;
  const visit = index => {
    if (mask[index] && !labels[index]) {
      labels[index] = count;
      stack.push(index);
    }
  };
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    count += 1;
    visit(start);
    while (stack.length) {
      const index = stack.pop(), row = Math.floor(index / width), column = index % width;
      for (let y = Math.max(row - 1, 0); y <= Math.min(row + 1, height - 1); y++) {
        for (let x = Math.max(column - 1, 0); x <= Math.min(column + 1, width - 1); x++) {
          if (corners || y === row || x === column) visit(y * width + x);
        }
      }
    }
  }
  return {labels, count};
}

function removeSpecks(ink) {
  const {labels, count} = label(ink), amounts = new Float64Array(count + 1);
  ink.data.forEach((value, index) => { amounts[labels[index]] += value; });
  const least = SPECK * maximum(amounts.slice(1));
  return like(ink, ink.data.map((value, n) =>
    labels[n] && amounts[labels[n]] >= least ? value : 0));
}

// The sum of a mask that is 0 at the edge, with its holes filled, and the mask.
function fillHoles(mask) {
  const {labels} = label(like(mask, mask.data.map(value => value ? 0 : 1)), false);
  return like(mask, Uint8Array.from(labels, value => value === labels[0] ? 0 : 1));
}

function isSheet(ink) {
  const solidInk = addMargin(solid(crop(ink)), 1), filled = fillHoles(solidInk);
  const radius = maximum(distances(filled)) * BOX
    / Math.max(solidInk.height, solidInk.width);
  const count = mask => mask.data.reduce((sum, value) => sum + value, 0);
  return radius > 6 && count(solidInk) > 0.85 * count(filled);
}

function digitsApart(ink) {
  const {labels, count} = label(ink);
  const boxes = Array.from({length: count}, () =>
    ({top: Infinity, bottom: 0, left: Infinity, right: 0}));
  labels.forEach((number, index) => {
    if (!number) return;
    const box = boxes[number - 1], y = Math.floor(index / ink.width);
    const x = index % ink.width;
    box.top = Math.min(box.top, y);
    box.bottom = Math.max(box.bottom, y + 1);
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
  });
  const tallest = maximum(boxes.map(box => box.bottom - box.top));
  const tall = boxes.filter(box => box.bottom - box.top >= tallest / 2);
  const apart = (start, end) => Math.min(...tall.map(box => box[end]))
    <= Math.max(...tall.map(box => box[start]));
  return apart("top", "bottom") || apart("left", "right");
}

// Crops to the ink and reduces its longer side to at most `FINE` pixels.
function crop(ink) {
  let [top, bottom, left, right] = [Infinity, 0, Infinity, 0];
  ink.data.forEach((value, index) => {
    if (!value) return;
    const y = Math.floor(index / ink.width), x = index % ink.width;
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
  });
  const cropped = grid(bottom - top, right - left);
  for (let y = top; y < bottom; y++) {
    const row = ink.data.subarray(y * ink.width + left, y * ink.width + right);
    cropped.data.set(row, (y - top) * cropped.width);
  }
  const longer = Math.max(cropped.height, cropped.width);
  return longer <= FINE ? cropped : resize(cropped, FINE / longer);
}

function addMargin(ink, margin) {
  const padded = grid(ink.height + 2 * margin, ink.width + 2 * margin);
  for (let y = 0; y < ink.height; y++) {
    const row = ink.data.subarray(y * ink.width, (y + 1) * ink.width);
    padded.data.set(row, (y + margin) * padded.width + margin);
  }
  return padded;
}

// Where the ink is at least half as strong as anywhere.
function solid(ink) {
  const half = maximum(ink.data) / 2;
  return like(ink, ink.data.map(value => value > half ? 1 : 0));
}

// The lower envelope of parabolas: the minimum over q of (p - q)^2 + heights[q], for
// each p (Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions").
function lowestParabolas(heights) {
  const apexes = [0], starts = [-Infinity];
  const meeting = (p, q) =>
    (heights[q] + q * q - heights[p] - p * p) / (2 * (q - p));
  for (let q = 1; q < heights.length; q++) {
    while (meeting(apexes.at(-1), q) <= starts.at(-1)) {
      apexes.pop();
      starts.pop();
    }
    starts.push(meeting(apexes.at(-1), q));
    apexes.push(q);
  }
  let current = 0;
  return heights.map((_, p) => {
    while (starts[current + 1] < p) current += 1;
    return (p - apexes[current]) ** 2 + heights[apexes[current]];
  });
}

// The distance of each pixel in a mask to the nearest outside it; 0 outside it.
function distances({height, width, data: mask}) {
  const far = (height + width) ** 2;
  const squares = Float64Array.from(mask, value => value ? far : 0);
  for (let x = 0; x < width; x++) {
    const column = Array.from({length: height}, (_, y) => squares[y * width + x]);
    lowestParabolas(column).forEach((value, y) => { squares[y * width + x] = value; });
  }
  for (let y = 0; y < height; y++) {
    const row = squares.subarray(y * width, (y + 1) * width);
    row.set(lowestParabolas(row));
  }
  return squares.map(Math.sqrt);
}

function thicken(ink) {
  const mask = addMargin(solid(ink), 1), longer = Math.max(ink.height, ink.width);
  const inside = distances(mask).filter((_, index) => mask.data[index]);
  const width = (4 * mean(inside) - 2) * BOX / longer;
  if (width >= MIN_STROKE) return ink;
  const radius = (MIN_STROKE - width) / 2 * longer / BOX;
  const padded = addMargin(ink, Math.ceil(radius) + 1), thick = solid(padded);
  const outside = distances(like(thick, thick.data.map(value => 1 - value)));
  return crop(like(padded, padded.data.map((value, index) =>
    Math.max(value, clamp(radius + 1 - outside[index], 0, 1)))));
}

// The weights of Pillow's resampling with a Hamming window: for each pixel of a resized
// side, the first pixel that it averages and the weights.
function resamplingWeights(from, to) {
  const scale = from / to, support = Math.max(scale, 1);
  const hamming = x => {
    if (Math.abs(x) >= 1) return 0;
    const angle = Math.PI * x;
    return x === 0 ? 1 : Math.sin(angle) / angle * (0.54 + 0.46 * Math.cos(angle));
  };
  return Array.from({length: to}, (_, index) => {
    const center = (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const stop = Math.min(from, Math.trunc(center + support + 0.5));
    const weights = Array.from({length: stop - start}, (_, n) =>
      hamming((start + n - center + 0.5) / support));
    const sum = weights.reduce((a, b) => a + b, 0);
    return {start, weights: weights.map(weight => weight / sum)};
  });
}

function resizeRows({height, width, data}, to) {
  const resized = grid(height, to);
  resamplingWeights(width, to).forEach(({start, weights}, x) => {
    for (let y = 0; y < height; y++) {
      resized.data[y * to + x] = weights.reduce(
        (sum, weight, n) => sum + weight * data[y * width + start + n], 0);
    }
  });
  return resized;
}

function transpose({height, width, data}) {
  return grid(width, height, Float32Array.from(data, (_, index) =>
    data[(index % height) * width + Math.floor(index / height)]));
}

function resize(ink, factor) {
  const [height, width] = [ink.height, ink.width].map(side =>
    Math.max(1, round(side * factor)));
  return transpose(resizeRows(transpose(resizeRows(ink, width)), height));
}

// Centres ink of at most 20x20 in 28x28 grey levels by its centre of mass.
function centre(ink) {
  const pixels = new Uint8Array(28 * 28);
  let [mass, down, right] = [0, 0, 0];
  ink.data.forEach((value, index) => {
    mass += value;
    down += value * Math.floor(index / ink.width);
    right += value * (index % ink.width);
  });
  const top = clamp(round(14 - down / mass), 0, 28 - ink.height);
  const left = clamp(round(14 - right / mass), 0, 28 - ink.width);
  ink.data.forEach((value, index) => {
    const y = top + Math.floor(index / ink.width), x = left + index % ink.width;
    pixels[28 * y + x] = clamp(round(255 * value), 0, 255);
  });
  return pixels;
}

// Returns {pixels, warning}: 28x28 grey levels, 0 is background and 255 ink, and an
// empty string or why the drawing may be no single digit.
function readDrawing(canvas) {
  const {ink, warning} = findInk(brightness(canvas)), thick = thicken(crop(ink));
  const fitted = resize(thick, BOX / Math.max(thick.height, thick.width));
  return {pixels: centre(fitted), warning};
}
