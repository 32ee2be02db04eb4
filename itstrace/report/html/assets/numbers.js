// Numbers as the terminal prints them (itstrace/units.py, itstrace/report/text.py), exact to the nanosecond.
function seconds(offset, digits = 9) {
  if (!isKnown(offset)) return "?";
  const time = ORIGIN + BigInt(Math.round(offset)); // the edge of a drawing may lie between two ns
  const negative = time < 0n;
  const step = 10n ** BigInt(9 - digits);
  const units = ((negative ? -time : time) + step / 2n) / step;
  const scale = 10n ** BigInt(digits);
  return `${negative && units ? "-" : ""}${units / scale}.${String(units % scale).padStart(digits, "0")}`;
}

// Ties go to the even digit, as in Python.
function fixed(value, digits) {
  const scaled = value * 10 ** digits;
  const whole = Math.floor(scaled);
  if (scaled - whole === 0.5) return ((whole % 2 ? whole + 1 : whole) / 10 ** digits).toFixed(digits);
  return value.toFixed(digits);
}

function duration(span) {
  if (!isKnown(span)) return "?";
  const size = Math.abs(span);
  const units = [
    ["ns", 1],
    ["us", 1e3],
    ["ms", 1e6],
    ["s", 1e9],
  ];
  const [unit, scale] = units.find(([name, scale]) => size / scale < 999.5 || name === "s");
  const value = size / scale;
  const digits = unit === "ns" || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${span < 0 ? "-" : ""}${fixed(value, digits)} ${unit}`;
}

const delta = (span) => (span < 0 ? duration(span) : `+${duration(span)}`);
const hexa = (value) => (isKnown(value) ? `0x${value.toString(16)}` : "?");
const number = (value) => (isKnown(value) ? value.toLocaleString("en-US") : "?");
const known = (value) => (isKnown(value) ? String(value) : "?");
const truth = (value) => (isKnown(value) ? (value ? "yes" : "no") : "?");
const priority = (value) => (isKnown(value) ? `0x${value.toString(16).padStart(2, "0")}` : "?");
const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
const listed = (words) =>
  words.length < 3 ? words.join(" and ") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;

// A time as somebody writes it (1350.325229, +3.2, -1) to an offset; null where it names none in the capture.
// To the microsecond it takes in every record that is printed with it (itstrace/instants.py).
function parseTime(text) {
  const told = /^([+-]?)(\d{1,10})(?:\.(\d{0,9}))?$/.exec(text.trim());
  if (!told) return null;
  const fraction = told[3] ?? "";
  const given = BigInt(told[2]) * 1000000000n + BigInt(fraction.padEnd(9, "0"));
  let offset = told[1] === "+" ? Number(given) : told[1] === "-" ? SPAN - Number(given) : Number(given - ORIGIN);
  if (!told[1] && fraction.length === 6) offset = Math.max(offset, Math.min(offset + 499, SPAN));
  return offset < 0 || offset > SPAN ? null : offset;
}
