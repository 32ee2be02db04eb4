// What a stretch of the timeline draws: single events where the page keeps them and they are few, else bins.
// A stretch: {from, until, only (an LPI, {vm, intid}; null: all), lanes: [{vm, vcpu, name}], width (of the plot, in
// pixels)}.
const SINGLE_MOST = 3000;
const FINDINGS_MOST = 300;
const NOTES_MOST = 400;
const GAPS_MOST = 400;
const LABEL = 44; // the room of an opcode's name, in pixels

// Plots count seconds from the origin; their words are exact.
const plotted = (offset) => offset / 1e9;

// {found: traces, single: whether they are single events, level: which level of detail that is, in words, most: how
// high the bars of MSIs and of commands are, lpis: which are drawn}
function tracesOf(stretch) {
  const rows = singleRows(stretch);
  const lanes = rows === null ? binTraces(stretch) : singleTraces(stretch, rows);
  return {
    found: [...gapTraces(stretch, lanes.most), ...lanes.found, findingTrace(stretch), noteTrace(stretch)],
    single: rows !== null,
    level: lanes.level,
    most: lanes.most,
    lpis: rows === null ? [] : lpisOf(rows),
  };
}

// Whether a row is of the LPI that alone is asked for; of one whose VM is not told, in any.
const isOnly = ({ only }, T) =>
  only === null ? null : (i) => T.intid[i] === only.intid && (only.vm === null || T.vm[i] === only.vm);

// Rows of a frame that lie in view, at most one more than may be drawn.
function rowsInView({ from, until }, T, begin, end, keep = null) {
  const rows = [];
  for (let i = 0; i < T.rows && rows.length <= SINGLE_MOST; i++) {
    const a = T[begin][i],
      b = end === null ? a : isKnown(T[end][i]) ? T[end][i] : SPAN;
    if (b >= from && a <= until && (keep === null || keep(i))) rows.push(i);
  }
  return rows;
}

// The single events of a stretch by frame; null where they are not kept, or too many.
function singleRows(stretch) {
  if (!inDetail(stretch.from, stretch.until)) return null;
  const rows = {
    msis: rowsInView(stretch, F.msis, "time_ns", null, isOnly(stretch, F.msis)),
    commands: rowsInView(stretch, F.commands, "time_ns", null, isOnly(stretch, F.commands)),
    fills: rowsInView(stretch, F.fills, "time_ns", "end_ns", isOnly(stretch, F.fills)),
    runs: rowsInView(stretch, F.runs, "enter_ns", "exit_ns"),
  };
  return Object.values(rows).reduce((sum, each) => sum + each.length, 0) <= SINGLE_MOST ? rows : null;
}

// The LPIs of MSIs and list registers in view, in order: [[vm, intid]].
function lpisOf({ msis, fills }) {
  const found = new Map();
  const put = (T, i) => isKnown(T.intid[i]) && found.set(`${T.vm[i]}:${T.intid[i]}`, [T.vm[i], T.intid[i]]);
  for (const i of msis) put(F.msis, i);
  for (const i of fills) put(F.fills, i);
  return [...found.values()].sort(([a, m], [b, n]) => a - b || m - n);
}

const pixelsOf = ({ from, until, width }, a, b) =>
  ((Math.min(isKnown(b) ? b : SPAN, until) - Math.max(a, from)) / (until - from)) * width;

// Rows whose words do not run into those of the one before; null for the others.
function apart(stretch, rows, time, room) {
  let before = -Infinity;
  return rows.map((i) => {
    const at = pixelsOf(stretch, stretch.from, time(i));
    if (at - before < room) return null;
    before = at;
    return i;
  });
}

function laneFinder({ lanes }) {
  const at = new Map(lanes.map((lane, n) => [`${lane.vm}:${lane.vcpu}`, n]));
  return (T, i) => at.get(`${T.vm[i]}:${T.vcpu[i]}`);
}

// --- single events

function singleTraces(stretch, rows) {
  const laneOf = laneFinder(stretch);
  const ran = rows.runs.filter((i) => laneOf(F.runs, i) !== undefined);
  const held = rows.fills.filter((i) => laneOf(F.fills, i) !== undefined);
  return {
    found: [
      msiTrace(rows.msis),
      commandTrace(stretch, rows.commands),
      runTrace(stretch, ran, laneOf),
      fillTrace(stretch, held, laneOf),
    ],
    most: [1.6, 1.35],
    level: `single events: ${plural(rows.msis.length, "MSI")}${rateWords(stretch, rows.msis.length)}, ${plural(rows.commands.length, "command")}, ${plural(rows.fills.length, "list register fill")}`,
  };
}

function rateWords({ from, until }, count) {
  const rate = count / plotted(until - from);
  return count > 1 ? ` (${number(Number(rate.toPrecision(2)))} per second)` : "";
}

function msiTrace(rows) {
  const M = F.msis;
  const colours = rows.map((i) => (isKnown(M.intid[i]) ? lpiColour(M.intid[i]) : colour("error")));
  const words = (i) => {
    const filled = isKnown(M.filled_ns[i])
      ? `, in a list register after ${duration(M.filled_ns[i] - M.time_ns[i])}`
      : "";
    return `MSI device ${hexa(M.device_id[i])} event ${known(M.event_id[i])}: LPI ${known(M.intid[i])}<br>${seconds(M.time_ns[i])}<br>${M.outcome[i] ?? ""}${filled}`;
  };
  return {
    type: "scatter",
    mode: "markers",
    x: rows.map((i) => plotted(M.time_ns[i])),
    y: rows.map((i) => (M.result[i] === 0 ? 1 : 0)),
    yaxis: "y",
    hoverinfo: "text",
    marker: {
      size: 8,
      symbol: rows.map((i) => (M.result[i] === 0 ? "circle" : "circle-open")),
      color: colours,
      line: { width: 1.5, color: colours },
    },
    text: rows.map(words),
    customdata: rows.map((i) => ({ kind: "msi", i })),
  };
}

function commandTrace(stretch, rows) {
  const C = F.commands;
  return {
    type: "scatter",
    mode: "markers+text",
    x: rows.map((i) => plotted(C.time_ns[i])),
    y: rows.map(() => 0.35),
    yaxis: "y2",
    hoverinfo: "text",
    textposition: rows.map((i) => {
      const at = pixelsOf(stretch, stretch.from, C.time_ns[i]);
      return at < LABEL / 2 ? "top right" : at > stretch.width - LABEL / 2 ? "top left" : "top center";
    }),
    textfont: { size: 10, color: colour("dim") },
    marker: {
      size: 10,
      symbol: rows.map((i) => (C.verdict[i] === "ok" ? "line-ns" : "x-thin")),
      line: { width: 2, color: rows.map((i) => colour(C.verdict[i] === "ok" ? "cmd" : "error")) },
    },
    text: apart(stretch, rows, (i) => C.time_ns[i], LABEL).map((i) => (i === null ? "" : (C.opcode[i] ?? "?"))),
    hovertext: rows.map((i) => `${C.text[i] ?? "?"}${verdictWords(i)}<br>${seconds(C.time_ns[i])}`),
    customdata: rows.map((i) => ({ kind: "command", i })),
  };
}

// Spans in the lanes of their vCPUs; the shortest stays wide enough to be seen.
function spanTrace({ from, until }, T, rows, begin, end, width, laneOf, more) {
  const length = (i) => Math.min(isKnown(T[end][i]) ? T[end][i] : SPAN, until) - Math.max(T[begin][i], from);
  return {
    type: "bar",
    orientation: "h",
    yaxis: "y3",
    base: rows.map((i) => plotted(Math.max(T[begin][i], from))),
    x: rows.map((i) => plotted(Math.max(length(i), (until - from) / 1500))),
    y: rows.map((i) => laneOf(T, i)),
    width,
    hoverinfo: "text",
    ...more,
  };
}

function runTrace(stretch, rows, laneOf) {
  const U = F.runs;
  return spanTrace(stretch, U, rows, "enter_ns", "exit_ns", 0.78, laneOf, {
    marker: { color: colour("run") },
    hovertext: rows.map(
      (i) =>
        `vCPU ${U.vcpu[i]} in the guest<br>${seconds(U.enter_ns[i])} to ${seconds(U.exit_ns[i])} (${duration(U.exit_ns[i] - U.enter_ns[i])})`,
    ),
    customdata: rows.map((i) => ({ kind: "run", i })),
  });
}

function fillTrace(stretch, rows, laneOf) {
  const L = F.fills;
  const words = (i) => {
    const end = isKnown(L.end_ns[i])
      ? ` to ${seconds(L.end_ns[i])} (${duration(L.end_ns[i] - L.time_ns[i])})<br>${FOUND[L.state[i]] ?? "not read back"}`
      : ", to the end";
    return `LPI ${L.intid[i]} in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]}<br>${seconds(L.time_ns[i])}${end}`;
  };
  return spanTrace(stretch, L, rows, "time_ns", "end_ns", 0.44, laneOf, {
    marker: { color: rows.map((i) => lpiColour(L.intid[i])), line: { width: 0.5, color: colour("card") } },
    text: rows.map((i) => (pixelsOf(stretch, L.time_ns[i], L.end_ns[i]) > 36 ? String(L.intid[i]) : "")),
    textposition: "inside",
    insidetextanchor: "start",
    textangle: 0,
    textfont: { size: 11, color: rows.map((i) => inkOn(lpiColour(L.intid[i]))) },
    hovertext: rows.map(words),
    customdata: rows.map((i) => ({ kind: "fill", i })),
  });
}

// --- bins

// The finest level of which not too many bins are in view.
function finestLevel({ from, until, lanes }) {
  const most = Math.min(Math.max(9000 / Math.max(lanes.length, 1), 260), 1400),
    share = (until - from) / SPAN;
  const fits = (bins, at) => share * bins <= most && (at === 0 || F[`vcpu_bins${at}`].rows || !F.vcpu_bins0.rows);
  return Math.max(0, REPORT.bins.findLastIndex(fits));
}

function binTraces(stretch) {
  const { from, until, only, lanes } = stretch;
  const laneOf = laneFinder(stretch);
  const n = finestLevel(stretch),
    width = SPAN / REPORT.bins[n],
    B = F[`bins${n}`],
    V = F[`vcpu_bins${n}`];
  const seen = (T) => {
    const rows = [];
    for (let i = 0; i < T.rows; i++) if ((T.bin[i] + 1) * width >= from && T.bin[i] * width <= until) rows.push(i);
    return rows;
  };
  const rows = seen(B),
    spent = seen(V).filter((i) => laneOf(V, i) !== undefined);
  const span = (i) => `${seconds(B.bin[i] * width, 6)} to ${seconds((B.bin[i] + 1) * width, 6)}`;
  const bars = (more) => ({
    type: "bar",
    x: rows.map((i) => plotted((B.bin[i] + 0.5) * width)),
    width: rows.map(() => plotted(width)),
    hoverinfo: "text",
    customdata: rows.map((i) => ({ kind: "bin", from: B.bin[i] * width, to: (B.bin[i] + 1) * width })),
    ...more,
  });
  const msis = bars({
    y: rows.map((i) => B.msis[i] / plotted(width)),
    yaxis: "y",
    marker: { color: colour("held") },
    hovertext: rows.map((i) => `${plural(B.msis[i], "MSI")}, ${number(B.refused[i])} refused<br>${span(i)}`),
  });
  const commands = bars({
    y: rows.map((i) => B.commands[i]),
    yaxis: "y2",
    marker: {
      color: rows.map((i) => colour(B.faults[i] ? "error" : "cmd")),
      pattern: { shape: rows.map((i) => (B.faults[i] ? "x" : "")), size: 4 },
    },
    hovertext: rows.map((i) => `${plural(B.commands[i], "command")}, ${number(B.faults[i])} faulted<br>${span(i)}`),
  });
  const vcpus = lanes.flatMap((lane, at) => {
    const mine = spent.filter((i) => laneOf(V, i) === at).sort((a, b) => V.bin[a] - V.bin[b]);
    return mine.length
      ? [
          shareTrace(V, mine, at, width, "running", colour("run"), 1),
          shareTrace(V, mine, at, width, "held", colour("held"), 0.85),
        ]
      : [];
  });
  const kept = REPORT.single.whole
    ? "zoom in for single events"
    : "single events are kept where the axis is marked: zoom in there";
  const highest = (values) => Math.max(...values, 1e-9) * 1.08;
  return {
    found: [msis, commands, ...vcpus],
    most: [highest(msis.y), highest(commands.y)],
    level: `level ${n + 1} of ${REPORT.bins.length + 1}: bins of ${duration(width)}; ${kept}${only === null ? "" : "; bins are of all LPIs"}`,
  };
}

// A share of each bin as one filled outline in its lane.
function shareTrace(V, rows, lane, width, name, paint, opacity) {
  const points = [],
    base = lane + 0.39;
  const put = (x, y, words = "", place = null) => points.push({ x, y, words, place });
  rows.forEach((i, at) => {
    const a = V.bin[i] * width,
      b = a + width,
      top = base - Math.min(V[name][i] / 1000, 1) * 0.78;
    if (at && V.bin[rows[at - 1]] !== V.bin[i] - 1) {
      put(points.at(-1).x, base);
      put(plotted(a), base);
    }
    if (!at) put(plotted(a), base);
    const words = `vCPU ${V.vcpu[i]}: ${fixed(V.running[i] / 10, 1)} % in the guest, ${fixed(V.held[i] / 1000, 2)} list registers in use<br>${seconds(a, 6)} to ${seconds(b, 6)}`,
      place = { kind: "bin", from: a, to: b };
    put(plotted(a), top, words, place);
    put(plotted(b), top, words, place);
  });
  put(points.at(-1).x, base);
  return {
    type: "scatter",
    mode: "lines",
    fill: "toself",
    fillcolor: paint,
    opacity,
    line: { width: 0, color: paint },
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    yaxis: "y3",
    hoveron: "points",
    hoverinfo: "text",
    hovertext: points.map((point) => point.words),
    customdata: points.map((point) => point.place),
  };
}

// --- what stands above both, and what lies below

// Where records were lost: hatched through all rows of the plot. [the highest of the MSIs' axis, of the commands']
function gapTraces({ from, until, lanes }, [msis, commands]) {
  const G = F.gaps,
    rows = [];
  const begin = (i) => (isKnown(G.from_ns[i]) ? G.from_ns[i] : 0),
    end = (i) => Math.max(isKnown(G.to_ns[i]) ? G.to_ns[i] : SPAN, begin(i) + (until - from) / 800);
  for (let i = 0; i < G.rows && rows.length < GAPS_MOST; i++) if (end(i) >= from && begin(i) <= until) rows.push(i);
  const a = rows.map((i) => Math.max(begin(i), from)),
    b = rows.map((i) => Math.min(end(i), until));
  const words = (i) =>
    `${isKnown(G.lost[i]) ? plural(G.lost[i], "record") : "records"} lost on CPU ${known(G.cpu[i])}<br>${seconds(G.from_ns[i])} to ${seconds(G.to_ns[i])}`;
  return [
    ["y4", -0.7, 2.7],
    ["y", -0.6, msis],
    ["y2", 0, commands],
    ["y3", -0.5, lanes.length - 0.5],
  ].map(([yaxis, low, high]) => ({
    type: "bar",
    yaxis,
    x: rows.map((_, n) => plotted((a[n] + b[n]) / 2)),
    width: rows.map((_, n) => plotted(b[n] - a[n])),
    base: low,
    y: rows.map(() => high - low),
    marker: {
      color: colour("warning-soft"),
      pattern: {
        shape: "/",
        size: 7,
        solidity: 0.25,
        fillmode: "replace",
        fgcolor: colour("warning"),
        bgcolor: colour("warning-soft"),
      },
    },
    opacity: 0.75,
    // In the lanes it would hide what other CPUs recorded meanwhile.
    hoverinfo: yaxis === "y3" ? "skip" : "text",
    hovertext: rows.map(words),
    textposition: "none",
    customdata: rows.map((i, n) => ({ kind: "gap", i, from: a[n], to: b[n] })),
  }));
}

function findingTrace({ from, until, only }) {
  const symbols = { error: "diamond", warning: "triangle-up", note: "circle" },
    height = { error: 2, warning: 1, note: 0 };
  const concerns = (one) =>
    only === null ||
    ([one, ...one.subjects].some((subject) => subject.intid === only.intid) &&
      (only.vm === null || one.vm === null || one.vm === only.vm));
  const near = REPORT.findings
    .filter((one) => one.time_ns !== null && one.time_ns >= from && one.time_ns <= until && concerns(one))
    .slice(0, FINDINGS_MOST);
  return {
    type: "scatter",
    mode: "markers",
    x: near.map((one) => plotted(one.time_ns)),
    y: near.map((one) => height[one.severity]),
    yaxis: "y4",
    cliponaxis: false,
    marker: {
      size: 11,
      symbol: near.map((one) => symbols[one.severity]),
      color: near.map((one) => colour(one.severity)),
    },
    hoverinfo: "text",
    hovertext: near.map((one) => `${one.id} ${escaped(one.name)}<br>${seconds(one.time_ns)}`),
    customdata: near.map((one) => ({ kind: "finding", id: one.id })),
  };
}

function noteTrace(stretch) {
  const N = F.markers,
    rows = rowsInView(stretch, N, "time_ns", null).slice(0, NOTES_MOST);
  return {
    type: "scatter",
    mode: "markers",
    x: rows.map((i) => plotted(N.time_ns[i])),
    y: rows.map(() => 0.5),
    yaxis: "y4",
    cliponaxis: false,
    marker: { size: 9, symbol: "line-ns", line: { width: 1.5, color: colour("dim") } },
    hoverinfo: "text",
    hovertext: rows.map((i) => `note in the trace: ${escaped((N.text[i] ?? "").trim())}<br>${seconds(N.time_ns[i])}`),
    customdata: rows.map((i) => ({ kind: "marker", i })),
  };
}
