// The data of the page: one document, and frames that are unpacked when they are first asked for.
const REPORT = JSON.parse(document.getElementById("report").textContent);
const ORIGIN = BigInt(REPORT.origin_ns);
const SPAN = REPORT.span_ns;

const KINDS = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f64: Float64Array,
  u64: BigUint64Array,
};

async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// A column as an array of numbers (NaN: unknown), of words (null: unknown), or of BigInts.
function column(spec, rows, buffer) {
  const array = new KINDS[spec.kind](buffer, spec.at, rows);
  const unknown = spec.unknown === undefined ? null : new Uint8Array(buffer, spec.unknown, (rows + 7) >> 3);
  const isUnknown = (i) => unknown !== null && (unknown[i >> 3] >> (i & 7)) & 1;
  if (spec.words) return Array.from(array, (code, i) => (isUnknown(i) ? null : spec.words[code]));
  if (spec.kind === "u64")
    return unknown === null ? array : Array.from(array, (word, i) => (isUnknown(i) ? null : word));
  if (unknown === null && spec.first === undefined) return array;
  const values = Float64Array.from(array);
  if (spec.first !== undefined) {
    let sum = spec.first;
    for (let i = 0; i < rows; i++) values[i] = sum += values[i];
  }
  if (unknown !== null) for (let i = 0; i < rows; i++) if (isUnknown(i)) values[i] = NaN;
  return values;
}

const unpacked = new Map();

// The columns of a frame by name, and `rows`.
function frame(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(name));
  return unpacked.get(name);
}

async function unpack(name) {
  const header = JSON.parse(document.getElementById(`frame-${name}-header`).textContent);
  const buffer = await inflate(document.getElementById(`frame-${name}`).textContent);
  const found = { rows: header.rows };
  for (const spec of header.columns) found[spec.name] = column(spec, header.rows, buffer);
  return found;
}

// Frames by name, all at once, unpacked: F.msis.time_ns[i].
const F = {};
let everything = null;
function frames() {
  everything ??= (async () => {
    const names = [...document.querySelectorAll("script[id^='frame-']:not([id$='-header'])")].map((each) =>
      each.id.slice(6),
    );
    await Promise.all(
      names.map(async (name) => {
        F[name] = await frame(name);
      }),
    );
    F.findingById = new Map(REPORT.findings.map((finding) => [finding.id, finding]));
    F.commandBySeq = new Map();
    for (let i = 0; i < F.commands.rows; i++) F.commandBySeq.set(F.commands.seq[i], i);
    F.lpiByKey = new Map();
    for (let i = 0; i < F.lpis.rows; i++) F.lpiByKey.set(`${F.lpis.vm[i]}:${F.lpis.intid[i]}`, i);
    return F;
  })();
  return everything;
}

const isKnown = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// The first place in a sorted array whose value is not below `value`.
function lowerBound(array, value, from = 0, to = array.length) {
  while (from < to) {
    const middle = (from + to) >> 1;
    if (array[middle] < value) from = middle + 1;
    else to = middle;
  }
  return from;
}
