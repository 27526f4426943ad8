"use strict";

const BOX = 20, SIDE = 28, SAMPLES = 8;

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Converts a drawing on transparency to MNIST's format, as MNIST's authors did: its
// bounding box is resized to fit 20x20, and its centre of mass put in the middle of
// 28x28. Returns the 784 grey levels, of which 0 is background and 255 ink.
function readDrawing(canvas) {
  const {width, height} = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const ink = (y, x) => y < height && x < width ? rgba[4 * (y * width + x) + 3] : 0;
  let [top, bottom, left, right] = [height, 0, width, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!ink(y, x)) continue;
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
    }
  }
  const scale = Math.max(bottom - top, right - left) / BOX;
  // The mean of 8x8 samples of each pixel: the drawing is 1 to 14 times as large.
  const offset = n => Math.floor((n + 0.5) / SAMPLES * scale);
  const box = new Float64Array(BOX * BOX);
  let [mass, down, across] = [0, 0, 0];
  box.forEach((_, index) => {
    const row = Math.floor(index / BOX), column = index % BOX;
    for (let n = 0; n < SAMPLES * SAMPLES; n++) {
      const y = top + offset(row * SAMPLES + Math.floor(n / SAMPLES));
      const x = left + offset(column * SAMPLES + n % SAMPLES);
      box[index] += ink(y, x) / SAMPLES ** 2;
    }
    mass += box[index];
    down += box[index] * row;
    across += box[index] * column;
  });
  const corner = (moment, size) =>
    clamp(Math.round(SIDE / 2 - moment / mass), 0, SIDE - Math.ceil(size / scale));
  const y0 = corner(down, bottom - top), x0 = corner(across, right - left);
  const pixels = new Uint8ClampedArray(SIDE * SIDE);
  box.forEach((value, index) => {
    const y = y0 + Math.floor(index / BOX), x = x0 + index % BOX;
    if (value) pixels[SIDE * y + x] = value;
  });
  return pixels;
}
