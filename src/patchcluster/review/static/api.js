// Requests to the server that served this page.

const tab = sessionStorage.getItem("tab") || makeTab();

function makeTab() {
  const name = crypto.randomUUID();
  sessionStorage.setItem("tab", name);
  return name;
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch {
    throw new Error("The review server does not respond. Confirmed labels are saved; start the review again.");
  }
  if (response.ok) return response;
  let reason = `${response.status} ${response.statusText}`;
  try {
    const said = await response.json();
    if (typeof said.error === "string") reason = said.error;
  } catch {
    // no JSON: the status is the reason
  }
  throw new Error(reason);
}

const ask = async (path) => (await request(path)).json();

async function post(path, value = {}) {
  const response = await request(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-patchcluster": "review" },
    body: JSON.stringify(value),
  });
  return response.json();
}

export const getRun = () => ask("/api/run");
export const getChanges = (since) => ask(`/api/changes?since=${since}`);
export const getNeighbours = async (id, x, y) =>
  (await ask(`/api/neighbours/${id}?x=${x}&y=${y}`)).neighbours;
export const saveLabels = (ids, label) => post("/api/labels", { ids, label, tab });
export const undo = async () => (await post("/api/undo", { tab })).ids;
export const nameGroup = (group, name) => post("/api/group-name", { group, name, tab });
export const flag = (count) => post("/api/flag", { count });
export const rescore = () => post("/api/rescore");

export const cropAddress = (id, x, y, side) =>
  `/crop/${id}?x=${x.toFixed(2)}&y=${y.toFixed(2)}&side=${side}`;

// Get a picture as a bitmap, and why it is not the original ("": it is).
export async function getPicture(path) {
  const response = await request(path);
  // The pixels of the file, without colour conversion.
  const options = { colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(await response.blob(), options);
  return { bitmap, note: response.headers.get("x-patchcluster-note") || "" };
}
