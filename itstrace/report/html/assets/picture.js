// The path of one LPI (null: of all) over the vCPUs of its VM in a stretch of time, as a drawing.
//
// A lane for the ITS (commands and MSIs), then one per vCPU: when it ran in the guest, when the LPI waited for it,
// when it was in one of its list registers. Numbered lines are the records that a finding rests on.
const LANE = 46;
const MOST_BARS = 3000;
const MOST_LANES = 16;
const AXIS = 30;
const CHAR = 6.2;

// Sizes that depend on no event: the place of a picture is kept free before its data are unpacked.
function sizesOf(vm, marked, compact) {
  const machine = REPORT.vms.find((each) => each.vm === vm);
  const vcpus = machine ? machine.vcpus.slice(0, MOST_LANES) : [];
  const lane = compact ? 42 : LANE,
    top = marked ? 30 : 10;
  const names = vcpus.map((vcpu) => (REPORT.vms.length > 1 ? `VM ${vm} vCPU ${vcpu}` : `vCPU ${vcpu}`));
  const widest = Math.max(3, ...names.map((name) => name.length));
  return {
    vcpus,
    names,
    lane,
    top,
    left: Math.round(22 + widest * 7.4),
    bottom: top + lane * (vcpus.length + 1),
    height: top + lane * (vcpus.length + 1) + AXIS,
  };
}

// `used`: names of the symbols that occur in it; `isWhole`: nothing of the LPIs had to be left out.
function picture({
  vm,
  intid,
  parts,
  times = null,
  width,
  marks = [],
  compact = false,
  chosen = null,
  onmark = () => {},
}) {
  const sizes = sizesOf(vm, marks.length, compact);
  const scale = scaleOf(parts, sizes.left, width - 10);
  const drawing = {
    vm,
    intid,
    width,
    scale,
    marks,
    ...sizes,
    right: width - 10,
    laneOf: new Map(sizes.vcpus.map((vcpu, at) => [vcpu, sizes.top + sizes.lane * (at + 1)])),
    used: new Set(),
    drawn: 0,
    // Of bars: where list registers were held, and what is to be written.
    stays: [],
    texts: [],
    layers: { back: [], runs: [], bars: [], marks: [], over: [] },
  };
  lanesOf(drawing);
  runsOf(drawing);
  absencesOf(drawing);
  waitsOf(drawing);
  staysOf(drawing);
  textsOf(drawing);
  stepsOf(drawing);
  cutsOf(drawing);
  const { lines, flags } = flagsOf({
    marks: marks.map((mark) => ({ ...mark, isElsewhere: times !== null && !times.includes(mark.at) })),
    scale,
    width,
    top: sizes.top,
    bottom: sizes.bottom,
    chosen,
    onmark,
  });
  const { back, runs, bars, marks: moments, over } = drawing.layers;
  const words = `${intid === null ? "all LPIs" : `LPI ${intid}`} over the vCPUs from ${seconds(scale.from)} to ${seconds(scale.to)}${parts.length > 1 ? `, of which ${plural(parts.length - 1, "stretch", "stretches")} cut out` : ""}`;
  const node = svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${sizes.height}`,
      width,
      height: sizes.height,
      role: "group",
      "aria-label": words,
      class: "path",
    },
    back,
    runs,
    lines,
    bars,
    over,
    moments,
    flags,
    axisOf(drawing),
  );
  return { node, used: drawing.used, scale, isWhole: drawing.drawn <= MOST_BARS };
}

const titled = (text) => svg("title", {}, text);

// Where a stretch lies in the drawing, or null where it lies outside it.
function placed({ scale }, from, to) {
  if (to < scale.from || from > scale.to) return null;
  return [scale.x(Math.max(from, scale.from)), scale.x(Math.min(to, scale.to))];
}

function lanesOf(drawing) {
  const { layers, left, right, top, lane, names, scale, laneOf, vm } = drawing;
  const label = (y, text) => layers.back.push(svg("text", { x: 8, y: y + lane / 2 + 2, class: "lane" }, text));
  label(top, "ITS");
  layers.back.push(svg("line", { x1: left, x2: right, y1: top + lane - 5, y2: top + lane - 5, class: "base" }));
  const unknown = !runsRecorded();
  if (unknown && laneOf.size) drawing.used.add("unknown");
  const words = titled("when this vCPU ran was not recorded");
  const machine = REPORT.vms.find((each) => each.vm === vm);
  const begin = machine?.complete && isKnown(machine.start_ns) ? machine.start_ns : -Infinity;
  [...laneOf.values()].forEach((y, at) => {
    label(y, names[at]);
    for (const piece of scale.whole) {
      const [x1, x2] = [Math.max(piece.from, begin), Math.min(piece.to, endOf(vm))].map(scale.x);
      if (x2 <= x1) continue;
      const place = { x: x1, y: y + 4, width: x2 - x1, height: lane - 8 };
      layers.back.push(
        svg("rect", { ...place, class: unknown ? "unknown" : "out" }, unknown ? words.cloneNode(true) : null),
      );
    }
  });
  if (machine && isKnown(machine.end_ns)) edgeOf(drawing, machine.end_ns, "the VM is torn down");
  if (begin > scale.from) edgeOf(drawing, begin, "the VM begins");
}

const runsRecorded = () => REPORT.coverage.observations.RUNS?.rows !== null;

// The begin or end of the VM.
function edgeOf({ layers, scale, top, bottom, left, right, width }, time, words) {
  if (time < scale.from - 1 || time > scale.to + 1) return;
  const at = scale.x(time),
    wide = words.length * CHAR,
    before = at + wide + 8 > width;
  layers.over.push(
    svg("line", { x1: at, x2: at, y1: top + 2, y2: bottom, class: "vmedge" }, titled(`${seconds(time)}  ${words}`)),
  );
  if (right - left > wide + 60)
    layers.over.push(
      svg(
        "text",
        { x: before ? at - 5 : at + 5, y: top + 12, class: "edgetext", "text-anchor": before ? "end" : "start" },
        words,
      ),
    );
}

// Where records were lost, and where single events are not in the page.
function absencesOf(drawing) {
  const { layers, scale, top, lane, bottom } = drawing;
  const G = F.gaps;
  for (let i = 0; i < G.rows; i++) {
    const place = placed(drawing, isKnown(G.from_ns[i]) ? G.from_ns[i] : 0, isKnown(G.to_ns[i]) ? G.to_ns[i] : SPAN);
    if (!place) continue;
    const [x1, x2] = place;
    drawing.used.add("gap");
    layers.runs.push(
      svg(
        "rect",
        { x: x1, y: top + 2, width: Math.max(x2 - x1, 2), height: bottom - top - 2, class: "gap" },
        titled(`records of CPU ${G.cpu[i]} were lost here: ${known(G.lost[i])}`),
      ),
    );
  }
  const S = REPORT.single;
  if (S.whole) return;
  let kept = 0;
  for (const [a, b] of [...S.from_ns.map((from, n) => [from, S.to_ns[n]]), [SPAN, SPAN]]) {
    const place = a > kept && kept < scale.to && a > scale.from ? placed(drawing, kept, a) : null;
    if (place && place[1] - place[0] > 1) {
      drawing.used.add("unkept");
      layers.back.push(
        svg(
          "rect",
          { x: place[0], y: top + lane, width: place[1] - place[0], height: bottom - top - lane, class: "unkept" },
          titled("single events are not kept here"),
        ),
      );
    }
    kept = Math.max(kept, b);
  }
}

// Steps of the LPI, and numbered commands (a SYNC, say) that are of no one LPI.
function stepsIn({ vm, intid, scale, marks }) {
  if (intid === null) return moments(vm, scale.from, scale.to);
  const steps = story(vm, intid),
    known = new Set(steps.filter((step) => step.kind === "command").map((step) => step.seq));
  const others = marks.filter((mark) => !known.has(mark.seq) && F.commandBySeq.has(mark.seq));
  return steps.concat(
    others.map(({ seq, at }) => {
      const command = F.commandBySeq.get(seq);
      return {
        seq,
        time: at,
        kind: "command",
        text: (F.commands.text[command] ?? "") + verdictWords(command),
        command,
      };
    }),
  );
}

// Steps that are moments. What lies in a cut is only counted there.
function stepsOf(drawing) {
  const { scale, top, lane, layers, laneOf } = drawing,
    opcodes = [];
  const put = (name, ...nodes) => {
    drawing.drawn++;
    drawing.used.add(name);
    layers.marks.push(...nodes);
  };
  for (const step of stepsIn(drawing)) {
    if (!isKnown(step.time) || drawing.drawn > MOST_BARS || !scale.shows(step.time)) continue;
    const at = scale.x(step.time),
      words = titled(`${seconds(step.time)}  ${step.text}`);
    if (step.kind === "command") {
      const shape = svg("path", { d: `M${at} ${top + lane - 5}v-12m-3.5 -0l7 0`, class: "cmd" }, words);
      put("cmd", svg("a", { href: href({ command: step.seq }), "aria-label": step.text }, shape));
      opcodes.push([at, F.commands.opcode[step.command] ?? "?"]);
    } else if (step.kind === "msi") {
      const name = F.msis.result[step.msi] === 0 ? "msi" : "msi refused";
      put(name, svg("circle", { cx: at, cy: top + lane - 10, r: 3.4, class: name }, words));
    } else if (step.kind === "retarget" || (step.kind === "vcpu" && /EnableLPIs/.test(step.text))) {
      const y = laneOf.get(Number(/vCPU (\d+)/.exec(step.text)?.[1]));
      if (y === undefined) continue;
      const name = step.kind === "retarget" ? "move" : "switch";
      const shape = name === "move" ? `M${at - 4.5} ${y - 1}h9l-4.5 7z` : `M${at - 4} ${y + 3}l8 8m0 -8l-8 8`;
      put(name, svg("path", { d: shape, class: name }, words));
    }
  }
  let free = -Infinity;
  for (const [at, opcode] of opcodes) {
    const wide = opcode.length * 6.4;
    const piece = scale.whole.find((each) => each.x1 <= at && at <= each.x2);
    const edge = piece === scale.whole.at(-1) ? drawing.width - 4 : piece.x2 + 12;
    const fits = at + 3 + wide < edge;
    const x = fits ? at + 3 : at - 3 - wide;
    if (x < free || x < drawing.left) continue;
    layers.marks.push(svg("text", { x, y: top + lane - 20, class: "opcode" }, opcode));
    free = x + wide + 8;
  }
}

// Where time is cut out: both edges as breaks through everything, and under it how much.
function cutsOf({ scale, layers, top, bottom, used }) {
  for (const { x1, x2, from, to } of scale.cuts) {
    used.add("cut");
    const words = `${duration(to - from)} are cut out here: ${seconds(from)} to ${seconds(to)}`;
    const zigzag = (x) => {
      let d = `M${x} ${top + 2}`;
      for (let y = top + 2, side = 1; y < bottom; y += 6, side = -side) d += `l${side * 4} ${Math.min(6, bottom - y)}`;
      return d;
    };
    layers.over.push(svg("rect", { x: x1, y: top, width: x2 - x1, height: bottom - top, class: "cut" }, titled(words)));
    for (const x of [x1 + 2, x2 - 6])
      layers.over.push(
        svg("path", { d: zigzag(x), class: "breakback" }),
        svg("path", { d: zigzag(x), class: "break" }),
      );
  }
}

// Ticks at round times, and under each cut how long it is.
function axisOf({ scale, width, bottom, right }) {
  const nodes = [],
    taken = [];
  for (const { x1, x2, from, to } of scale.cuts) {
    const text = duration(to - from),
      middle = (x1 + x2) / 2;
    if (taken.some(([, end]) => end > middle - text.length * 3.4)) continue;
    nodes.push(
      svg(
        "text",
        { x: middle, y: bottom + 18, "text-anchor": "middle", class: "cuttext" },
        text,
        titled(`${text} cut out`),
      ),
    );
    taken.push([middle - text.length * 3.4, middle + text.length * 3.4]);
  }
  const step = niceStep(scale.perPixel * (scale.cuts.length ? 110 : Math.max(130, width / 12)));
  // A part without a label has finer steps tried on it.
  for (const piece of scale.whole) {
    nodes.push(svg("line", { x1: piece.x1, x2: piece.x2, y1: bottom, y2: bottom, class: "axis" }));
    for (const each of [step, step / 2, step / 5, step / 10]) if (ticksIn(piece, each)) break;
  }
  function ticksIn(piece, step) {
    let labelled = 0;
    for (const time of ticksOf(piece.from, piece.to, step)) {
      const at = scale.x(time),
        text = axisText(time, step),
        half = text.length * 3.35 + 3;
      const fits = at + half < right + 12 && at - half > 0 && !taken.some(([a, b]) => b > at - half && a < at + half);
      nodes.push(svg("line", { x1: at, x2: at, y1: bottom, y2: bottom + (fits ? 5 : 3), class: "tick" }));
      if (!fits) continue;
      labelled++;
      taken.push([at - half, at + half]);
      nodes.push(svg("text", { x: at, y: bottom + 18, "text-anchor": "middle", class: "ticktext" }, text));
    }
    return labelled;
  }
  return nodes;
}

// Rows of a VM, whatever the LPI.
function allOf(name, vm) {
  const T = F[name],
    found = [];
  for (let i = 0; i < T.rows; i++) if (T.vm[i] === vm) found.push(i);
  return found;
}

// What happened in a stretch, of all LPIs, as steps of a story.
function moments(vm, from, to) {
  const steps = [],
    inside = (T) => allOf(T, vm).filter((i) => F[T].time_ns[i] >= from && F[T].time_ns[i] <= to);
  const C = F.commands,
    S = F.msis,
    R = F.retargets,
    V = F.vm_events;
  for (const i of inside("commands"))
    steps.push({
      seq: C.seq[i],
      time: C.time_ns[i],
      kind: "command",
      text: (C.text[i] ?? "") + verdictWords(i),
      command: i,
    });
  for (const i of inside("msis"))
    steps.push({
      seq: S.seq[i],
      time: S.time_ns[i],
      kind: "msi",
      text: `MSI from device ${hexa(S.device_id[i])}, event ${known(S.event_id[i])}${isKnown(S.intid[i]) ? `: LPI ${S.intid[i]}` : ""}${S.result[i] === 0 ? "" : `, refused (${known(S.result[i])})`}`,
      msi: i,
    });
  for (const i of inside("retargets"))
    steps.push({
      seq: R.seq[i],
      time: R.time_ns[i],
      kind: "retarget",
      text: `LPI ${R.intid[i]}: ${moveWords(i)}`,
    });
  for (const i of inside("vm_events"))
    if (V.what[i] in SWITCHES)
      steps.push({ seq: V.seq[i], time: V.time_ns[i], kind: "vcpu", text: SWITCHES[V.what[i]](known(V.vcpu[i])) });
  return steps.sort((a, b) => a.seq - b.seq);
}
