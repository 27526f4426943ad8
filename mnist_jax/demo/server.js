"use strict";
// Asks the server for the networks and their predictions.

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server is not responding; restart it.");
  }
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

function listModels() {
  return request("models");
}

async function classify(canvas) {
  const body = await new Promise(resolve => canvas.toBlob(resolve, "image/png"));
  const headers = {"Content-Type": "image/png"};
  return request("predict", {method: "POST", headers, body});
}
