// A bundle of Fathom in a browser: the same answers as `fathom serve --policy deepest`, without a server.
//
//     const bundle = await Bundle.open("bundle");
//     const { items, depth } = await bundle.recommend(["50", "172", "181"], { k: 10, depth: 8 });
//
// Everything that is computed here is described in docs/bundle-format.md, and is all that another language needs: pad or
// cut the history, look its vectors up, run the segments of a depth one after the other, and search.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// More threads need a page that is cross-origin isolated, and one request is too small for them.
ort.env.wasm.numThreads = 1;

const ARRAYS = {
  "|i1": Int8Array,
  "<i4": Int32Array,
  "<i8": BigInt64Array,
  "<f2": Uint16Array,
  "<f4": Float32Array,
};

export class Bundle {
  static async open(folder) {
    const get = async (name) => {
      const response = await fetch(`${folder}/${name}`);
      if (!response.ok) throw new Error(`${folder}/${name}: ${response.status} ${response.statusText}`);
      return response;
    };
    const manifest = await (await get("manifest.json")).json();
    if (manifest.format !== "onnx") throw new Error(`${folder}: its engines are ${manifest.format}, not onnx`);
    const array = async (name) => npy(await (await get(name)).arrayBuffer());
    const catalogue = await (await get("items/catalogue.json")).json();
    const vectors = floats(await array("items/vectors.npy"), manifest.model.width);
    const counting = manifest.counting && {
      ...manifest.counting,
      offsets: await array("counting/offsets.npy"),
      neighbours: await array("counting/neighbours.npy"),
      gains: await array("counting/weights.npy"),
      popularity: await array("counting/popularity.npy"),
    };
    const files = new Set(Object.values(manifest.depths).flatMap((depth) => depth.segments));
    const sessions = {};
    for (const file of files) {
      // It warns that an input may be left out.
      sessions[file] = await ort.InferenceSession.create(await (await get(file)).arrayBuffer(), { logSeverityLevel: 3 });
    }
    return new Bundle(manifest, catalogue, vectors, counting, sessions);
  }

  constructor(manifest, catalogue, vectors, counting, sessions) {
    Object.assign(this, { manifest, catalogue, vectors, counting, sessions });
    this.index = new Map(catalogue.ids.map((id, index) => [id, index]));
    this.depths = Object.keys(manifest.depths).map(Number).sort((a, b) => a - b);
  }

  // The best items for a history of item ids, oldest first; `timestamps`: seconds, one for each id, where they are known.
  async recommend(ids, { k = 10, depth = this.depths.at(-1), timestamps = null } = {}) {
    const known = ids.map((id, place) => [this.index.get(id), place]).filter(([item]) => item !== undefined);
    const seen = known.map(([item]) => item);
    const times = timestamps && known.map(([, place]) => timestamps[place]);
    const newest = -this.manifest.model.max_history;
    if (!seen.length && !this.counting) throw new Error("no item of the history is in the catalogue");
    // Of a stranger no layer knows anything.
    const used = seen.length ? depth : 0;
    const scores = used
      ? await this.#scores(seen.slice(newest), times && times.slice(newest), used)
      : this.#popularityAndShares(seen.slice(newest));
    for (const item of seen) scores[item] = -Infinity;
    const items = best(scores, k).map((item) => ({
      id: this.catalogue.ids[item],
      title: this.catalogue.titles?.[item] ?? "",
      score: scores[item],
    }));
    return { items, depth: used };
  }

  // The cosine of every item with the user, and what counting adds at this depth.
  async #scores(items, times, depth) {
    const user = await this.#user(items, times, depth);
    const { width } = this.manifest.model;
    const scores = new Float32Array(this.catalogue.ids.length);
    for (let item = 0, at = 0; item < scores.length; item++, at += width) {
      let sum = 0;
      for (let each = 0; each < width; each++) sum += this.vectors[at + each] * user[each];
      scores[item] = sum;
    }
    const weight = Math.fround(this.counting?.weights[depth] ?? 0);
    if (weight) this.#shares(items).forEach((share, item) => (scores[item] += Math.fround(weight * share)));
    return scores;
  }

  // The vector of a user: the segments up to a depth, one after the other.
  async #user(items, times, depth) {
    const { width, uses_timestamps: timed } = this.manifest.model;
    const rows = new Float32Array(items.length * width);
    items.forEach((item, place) => rows.set(this.vectors.subarray(item * width, (item + 1) * width), place * width));
    const shape = [1, items.length];
    const given = {
      item_vectors: new ort.Tensor("float32", rows, [...shape, width]),
      items: new ort.Tensor("int64", BigInt64Array.from(items, (item) => BigInt(item + 1)), shape),
    };
    if (timed) given.timestamps = new ort.Tensor("int64", BigInt64Array.from(items, (_, i) => BigInt(times?.[i] ?? 0)), shape);
    const segments = this.manifest.depths[depth].segments;
    for (const file of segments) {
      const session = this.sessions[file];
      const feeds = Object.fromEntries(session.inputNames.filter((name) => given[name]).map((name) => [name, given[name]]));
      const output = file === segments.at(-1) ? "user_vector" : "hidden_out";
      given.hidden_in = (await session.run(feeds, [output]))[output];
    }
    return given.hidden_in.data;
  }

  // What usually follows the newest items, as shares of the largest count: item -> share.
  #shares(items) {
    const { window, decay, offsets, neighbours, gains } = this.counting;
    const counts = new Map();
    items.slice(-window).reverse().forEach((item, age) => {
      for (let place = Number(offsets[item]); place < Number(offsets[item + 1]); place++) {
        counts.set(neighbours[place], (counts.get(neighbours[place]) ?? 0) + gains[place] * decay ** age);
      }
    });
    const largest = Math.max(...counts.values());
    return new Map([...counts].map(([item, count]) => [item, Math.fround(count / largest)]));
  }

  // Depth 0: by share, and below that by popularity.
  #popularityAndShares(items) {
    const scores = Float32Array.from(this.counting.popularity, (share) => share - 1);
    this.#shares(items).forEach((share, item) => (scores[item] = share));
    return scores;
  }
}

// The k items of the highest scores; equal ones: the lowest index first. Those at -Infinity are left out.
function best(scores, k) {
  return [...scores.keys()]
    .filter((item) => scores[item] > -Infinity)
    .sort((a, b) => scores[b] - scores[a] || a - b)
    .slice(0, k);
}

// The values of a .npy file, as one typed array.
function npy(buffer) {
  const bytes = new DataView(buffer);
  const long = bytes.getUint8(6) > 1;
  const length = long ? bytes.getUint32(8, true) : bytes.getUint16(8, true);
  const start = long ? 12 : 10;
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const type = /'descr': '([^']+)'/.exec(header)?.[1];
  if (!ARRAYS[type] || header.includes("'fortran_order': True")) throw new Error(`an array that is not read: ${header}`);
  return new ARRAYS[type](buffer, start + length);
}

// Item vectors of any precision as unit rows in float32; an int8 row has the direction of its vector.
function floats(values, width) {
  if (values instanceof Float32Array) return values;
  const found = values instanceof Uint16Array ? Float32Array.from(values, half) : Float32Array.from(values);
  for (let row = 0; values instanceof Int8Array && row < found.length; row += width) {
    const norm = Math.hypot(...found.subarray(row, row + width));
    for (let each = row; each < row + width; each++) found[each] /= norm;
  }
  return found;
}

// The value of a float16.
function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (!exponent) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
