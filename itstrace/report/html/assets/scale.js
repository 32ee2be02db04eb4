// From time to place: a scale of one part, or of several between which time is cut out, and the ticks under it.
const CUT = [26, 58];

// `parts`: [from, to], in order. All have one scale; what is cut out between them is drawn too, so many pixels wide.
function scaleOf(parts, left, right) {
  const wideCut = Math.min(Math.max((right - left) * 0.12, CUT[0]), CUT[1]);
  const drawn = drawnIn(parts),
    room = right - left - wideCut * (parts.length - 1);
  const pieces = [];
  let at = left;
  parts.forEach(([from, to], n) => {
    if (n) {
      pieces.push({ from: parts[n - 1][1], to: from, x1: at, x2: at + wideCut, cut: true });
      at += wideCut;
    }
    const wide = room * ((to - from) / drawn);
    pieces.push({ from, to, x1: at, x2: at + wide, cut: false });
    at += wide;
  });
  const first = pieces[0],
    last = pieces.at(-1);
  const x = (time) => {
    const piece = pieces.find((each) => time <= each.to) ?? last;
    const share = (time - piece.from) / (piece.to - piece.from || 1);
    return piece.x1 + Math.min(Math.max(share, 0), 1) * (piece.x2 - piece.x1);
  };
  const time = (place) => {
    const piece = pieces.find((each) => place <= each.x2) ?? last;
    const share = Math.min(Math.max((place - piece.x1) / (piece.x2 - piece.x1 || 1), 0), 1);
    return piece.from + share * (piece.to - piece.from);
  };
  return {
    left,
    right,
    from: first.from,
    to: last.to,
    whole: pieces.filter((each) => !each.cut),
    cuts: pieces.filter((each) => each.cut),
    x,
    time,
    // In the stretch, and in none of its cuts.
    shows: (at) => pieces.some((each) => !each.cut && each.from <= at && at <= each.to),
    perPixel: drawn / Math.max(room, 1),
  };
}

const drawnIn = (parts) => parts.reduce((sum, [from, to]) => sum + (to - from), 0);

// The parts of a stretch that show these moments, each once and in order. Where some would lie on one another because
// nearly all of the stretch lies between two others, what is between these is cut out.
const MOST_CUTS = 3;
const DULL = 0.8;
const TOO_NEAR = 0.024;
function partsOf(times, room) {
  const gaps = times.slice(1).map((time, at) => time - times[at]);
  const cut = new Set();
  let rest = times.at(-1) - times[0];
  while (cut.size < MOST_CUTS) {
    const widest = gaps.reduce((best, gap, at) => (!cut.has(at) && (best < 0 || gap > gaps[best]) ? at : best), -1);
    if (widest < 0 || gaps[widest] < DULL * rest || gaps[widest] >= rest) break;
    if (Math.min(...gaps.filter((_, at) => !cut.has(at))) >= TOO_NEAR * rest) break;
    cut.add(widest);
    rest -= gaps[widest];
  }
  const pad = cut.size ? Math.max(rest * 0.1, 3e4) : room(rest);
  const parts = [[times[0] - pad, times[0] + pad]];
  gaps.forEach((gap, at) => {
    if (cut.has(at)) parts.push([times[at + 1] - pad, times[at + 1] + pad]);
    else parts.at(-1)[1] = times[at + 1] + pad;
  });
  return parts;
}

// Within the capture, and no part over another.
function inCapture(parts) {
  const kept = [];
  for (const [from, to] of parts) {
    const a = Math.max(from, 0),
      b = Math.min(to, SPAN);
    if (b <= a) continue;
    if (kept.length && a <= kept.at(-1)[1]) kept.at(-1)[1] = Math.max(b, kept.at(-1)[1]);
    else kept.push([a, b]);
  }
  return kept.length ? kept : [[0, Math.max(SPAN, 1000)]];
}

function niceStep(least) {
  const scale = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((each) => each * scale).find((each) => each >= least) ?? scale * 10;
}

// Offsets at which the capture's clock is a multiple of a step.
function ticksOf(from, to, step) {
  const whole = BigInt(Math.max(Math.round(step), 1)),
    found = [];
  const begin = ORIGIN + BigInt(Math.ceil(from));
  for (
    let time = Number(((begin + whole - 1n) / whole) * whole - ORIGIN);
    time <= to && found.length < 100;
    time += Number(whole)
  )
    found.push(time);
  return found;
}

function axisText(time, step) {
  const digits = step >= 1e9 ? 0 : Math.min(9, Math.ceil(9 - Math.log10(step)));
  return seconds(Math.round(time), digits);
}
