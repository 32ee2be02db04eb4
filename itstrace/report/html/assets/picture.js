// The path of one LPI (null: of all) over the vCPUs of its VM in a stretch of time, as a drawing.
//
// A lane for the ITS (commands and MSIs), then one per vCPU: when it ran in the guest, when the LPI waited on its
// list, when it was in one of its list registers. Numbered lines are the records that a finding rests on.
const LANE = 46;
const LEFT = 86;
const MOST_BARS = 3000;
const FLAG = 18;

function picture({ vm, intid, from, to, width, numbered = [], compact = false, title }) {
  const machine = REPORT.vms.find((each) => each.vm === vm);
  const vcpus = machine ? machine.vcpus.slice(0, 16) : [];
  const lane = compact ? 38 : LANE,
    top = numbered.length ? 30 : 10,
    axis = 30;
  const height = top + lane * (vcpus.length + 1) + axis;
  const x = (time) => LEFT + ((time - from) / (to - from)) * (width - LEFT - 10);
  const clip = (a, b) => [Math.max(x(Math.max(a, from)), LEFT), Math.min(x(Math.min(b, to)), width - 10)];
  const laneOf = new Map(vcpus.map((vcpu, at) => [vcpu, top + lane * (at + 1)]));
  const layers = { back: [], runs: [], queued: [], held: [], marks: [], lines: [] };
  let drawn = 0;
  const tell = (text) => svg("title", {}, text);

  const label = (y, text) => layers.back.push(svg("text", { x: 8, y: y + lane / 2 + 4, class: "lane" }, text));
  label(top, "ITS");
  layers.back.push(svg("line", { x1: LEFT, x2: width - 10, y1: top + lane - 5, y2: top + lane - 5, class: "base" }));
  for (const [vcpu, y] of laneOf) {
    label(y, `vCPU ${vcpu}`);
    layers.back.push(svg("rect", { x: LEFT, y: y + 4, width: width - LEFT - 10, height: lane - 10, class: "out" }));
  }
  const G = F.gaps;
  for (let i = 0; i < G.rows; i++) {
    const a = isKnown(G.from_ns[i]) ? G.from_ns[i] : 0,
      b = isKnown(G.to_ns[i]) ? G.to_ns[i] : SPAN;
    if (b < from || a > to) continue;
    const [x1, x2] = clip(a, b);
    layers.back.push(
      svg(
        "rect",
        { x: x1, y: top, width: Math.max(x2 - x1, 1), height: height - axis - top, class: "gap" },
        tell(`records of CPU ${G.cpu[i]} were lost here: ${known(G.lost[i])}`),
      ),
    );
  }
  const S = REPORT.single;
  if (!S.whole) {
    let kept = 0;
    const edges = [...S.from_ns.map((a, n) => [a, S.to_ns[n]]), [SPAN, SPAN]];
    for (const [a, b] of edges) {
      if (kept < to && a > from && a > kept) {
        const [x1, x2] = clip(kept, a);
        if (x2 - x1 > 1)
          layers.back.push(
            svg(
              "rect",
              { x: x1, y: top + lane, width: x2 - x1, height: height - axis - top - lane, class: "unkept" },
              tell("single events are not kept here"),
            ),
          );
      }
      kept = Math.max(kept, b);
    }
  }
  // Stretches that would lie on one another at this scale become one.
  const bars = (rows, T, begin, end, put) => {
    const last = new Map();
    for (const i of rows) {
      const a = T[begin][i],
        b = isKnown(T[end][i]) ? T[end][i] : Math.min(to, endOf(vm));
      if (b < from || a > to) continue;
      const y = laneOf.get(T.vcpu[i]);
      if (y === undefined || drawn > MOST_BARS) continue;
      const [x1, x2] = clip(a, b);
      const prior = last.get(T.vcpu[i]);
      if (put.merge && prior && x1 - prior.x2 < 0.6) {
        if (x2 > prior.x2) {
          prior.x2 = x2;
          prior.node.setAttribute("width", String(Math.max(x2 - prior.x1, 0.7)));
        }
        continue;
      }
      drawn++;
      last.set(T.vcpu[i], { x1, x2, node: put(i, x1, Math.max(x2 - x1, put.least ?? 0.7), y) });
    }
  };
  const U = F.runs,
    mine = [];
  for (let i = 0; i < U.rows; i++) if (U.vm[i] === vm) mine.push(i);
  const run = (i, x1, w, y) => {
    const node = svg("rect", { x: x1, y: y + 4, width: w, height: lane - 10, class: "run" });
    layers.runs.push(node);
    return node;
  };
  run.merge = true;
  bars(mine, U, "enter_ns", "exit_ns", run);
  const rows = (name) => (intid === null ? allOf(name, vm) : rowsOf(name, vm, intid));
  bars(rows("queued"), F.queued, "from_ns", "to_ns", (i, x1, w, y) => {
    const node = svg(
      "rect",
      { x: x1, y: y + lane - 15, width: w, height: 5, class: "queued" },
      tell(
        `${intid === null ? `LPI ${F.queued.intid[i]} ` : ""}pending on the list of vCPU ${F.queued.vcpu[i]}: ${seconds(F.queued.from_ns[i])} to ${seconds(F.queued.to_ns[i])} (${duration(F.queued.to_ns[i] - F.queued.from_ns[i])})`,
      ),
    );
    layers.queued.push(node);
    return node;
  });
  const L = F.fills;
  const held = (i, x1, w, y) => {
    const words = `${intid === null ? `LPI ${L.intid[i]} ` : ""}in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]}: ${seconds(L.time_ns[i])} to ${isKnown(L.end_ns[i]) ? `${seconds(L.end_ns[i])} (${duration(L.end_ns[i] - L.time_ns[i])}), ${FOUND[L.state[i]] ?? "not read back"}` : "the end of the capture"}`;
    const node = svg("rect", { x: x1, y: y + 9, width: w, height: lane - 28, rx: 1.5, class: "held" }, tell(words));
    layers.held.push(node);
    if (intid === null && w > 34)
      layers.held.push(svg("text", { x: x1 + 4, y: y + lane / 2 - 1, class: "inbar" }, String(L.intid[i])));
    return node;
  };
  held.least = 2.5;
  bars(rows("fills"), L, "time_ns", "end_ns", held);

  // Steps that are moments.
  const opcodes = [];
  for (const step of intid === null ? moments(vm, from, to) : story(vm, intid)) {
    if (step.time === null || step.time < from || step.time > to || drawn > MOST_BARS) continue;
    const at = x(step.time),
      words = tell(`${seconds(step.time)}  ${step.text}`);
    if (step.kind === "command") {
      drawn++;
      layers.marks.push(
        svg(
          "a",
          { href: href({ command: step.seq }) },
          svg("path", { d: `M${at} ${top + lane - 5}v-12m-3.5 -0l7 0`, class: "cmd" }, words),
        ),
      );
      opcodes.push([at, F.commands.opcode[step.command] ?? "?"]);
    } else if (step.kind === "msi") {
      drawn++;
      layers.marks.push(
        svg(
          "circle",
          { cx: at, cy: top + lane - 10, r: 3.4, class: F.msis.result[step.msi] === 0 ? "msi" : "msi refused" },
          words,
        ),
      );
    } else if (step.kind === "retarget" || (step.kind === "vcpu" && /EnableLPIs/.test(step.text))) {
      const vcpu = Number(/vCPU (\d+)/.exec(step.text)?.[1]);
      const y = laneOf.get(vcpu);
      if (y === undefined) continue;
      drawn++;
      const shape = step.kind === "retarget" ? `M${at - 4.5} ${y - 1}h9l-4.5 7z` : `M${at - 4} ${y + 6}l8 8m0 -8l-8 8`;
      layers.marks.push(svg("path", { d: shape, class: step.kind === "retarget" ? "move" : "switch" }, words));
    }
  }
  let free = -Infinity;
  for (const [at, opcode] of opcodes) {
    if (at < free || at + opcode.length * 6.4 > width) continue;
    layers.marks.push(svg("text", { x: at + 3, y: top + lane - 20, class: "opcode" }, opcode));
    free = at + opcode.length * 6.6 + 10;
  }
  // Numbered records: flags side by side, each with a line to its place.
  const marks = numbered
    .filter((each) => each.at >= from && each.at <= to)
    .map((each) => ({ ...each, x: x(each.at) }))
    .sort((a, b) => a.x - b.x);
  const groups = [];
  const begin = (group) =>
    Math.min(
      Math.max(group.reduce((sum, each) => sum + each.x, 0) / group.length - ((group.length - 1) * FLAG) / 2, LEFT),
      width - 14 - (group.length - 1) * FLAG,
    );
  for (const each of marks) {
    groups.push([each]);
    while (
      groups.length > 1 &&
      begin(groups.at(-1)) - (begin(groups.at(-2)) + (groups.at(-2).length - 1) * FLAG) < FLAG
    )
      groups.at(-2).push(...groups.pop());
  }
  const done = groups.flatMap((group) => group.map((each, at) => ({ ...each, flag: begin(group) + at * FLAG })));
  for (const { x: at, flag, label: text, words } of done) {
    layers.lines.push(svg("path", { d: `M${flag} 19L${at} ${top}V${height - axis}`, class: "flagline" }));
    layers.lines.push(
      svg(
        "g",
        { class: "flag" },
        tell(words),
        svg("circle", { cx: flag, cy: 11, r: 8 }),
        svg("text", { x: flag, y: 14.8, "text-anchor": "middle" }, text),
      ),
    );
  }
  // The axis: round steps from the beginning of the stretch.
  const step = niceStep((to - from) / Math.max(Math.floor((width - LEFT) / 130), 2));
  const ticks = [];
  for (const time of ticksOf(from, to, step)) {
    const at = x(time);
    if (at > width - 46) break;
    ticks.push(svg("line", { x1: at, x2: at, y1: height - axis, y2: height - axis + 5, class: "tick" }));
    ticks.push(
      svg("text", { x: at, y: height - axis + 18, "text-anchor": "middle", class: "ticktext" }, axisText(time, step)),
    );
  }
  const words =
    title ?? `${intid === null ? "all LPIs" : `LPI ${intid}`} over the vCPUs from ${seconds(from)} to ${seconds(to)}`;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": words, class: "path" },
    layers.back,
    layers.runs,
    layers.lines.filter((node) => node.tagName === "path"),
    layers.queued,
    layers.held,
    layers.marks,
    layers.lines.filter((node) => node.tagName !== "path"),
    svg("line", { x1: LEFT, x2: width - 10, y1: height - axis, y2: height - axis, class: "axis" }),
    ticks,
  );
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
      text: `MSI from device ${hexa(S.device_id[i])}, event ${known(S.event_id[i])}: LPI ${known(S.intid[i])}${S.result[i] === 0 ? "" : `, refused (${known(S.result[i])})`}`,
      msi: i,
    });
  for (const i of inside("retargets"))
    steps.push({
      seq: R.seq[i],
      time: R.time_ns[i],
      kind: "retarget",
      text: `KVM gives LPI ${R.intid[i]} to vCPU ${known(R.vcpu[i])}`,
    });
  for (const i of inside("vm_events"))
    if (V.what[i] in SWITCHES)
      steps.push({ seq: V.seq[i], time: V.time_ns[i], kind: "vcpu", text: SWITCHES[V.what[i]](known(V.vcpu[i])) });
  return steps.sort((a, b) => a.seq - b.seq);
}

function endOf(vm) {
  return REPORT.vms.find((each) => each.vm === vm)?.end_ns ?? SPAN;
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

function legend() {
  const item = (shape, text) =>
    el("span", {}, svg("svg", { width: 22, height: 14, "aria-hidden": "true", class: "path" }, shape), text);
  return el(
    "div",
    { class: "legend" },
    item(svg("rect", { x: 1, y: 1, width: 20, height: 12, class: "run" }), "vCPU in the guest"),
    item(svg("rect", { x: 1, y: 2, width: 20, height: 10, rx: 1.5, class: "held" }), "LPI in a list register"),
    item(svg("rect", { x: 1, y: 5, width: 20, height: 5, class: "queued" }), "pending on its list"),
    item(svg("circle", { cx: 11, cy: 7, r: 3.4, class: "msi" }), "MSI"),
    item(svg("circle", { cx: 11, cy: 7, r: 3.4, class: "msi refused" }), "refused"),
    item(svg("path", { d: "M11 13v-12m-3.5 0l7 0", class: "cmd" }), "command"),
    item(svg("path", { d: "M6.5 3h9l-4.5 7z", class: "move" }), "KVM moves it"),
    item(svg("path", { d: "M7 3l8 8m0 -8l-8 8", class: "switch" }), "EnableLPIs written"),
  );
}

// A picture with buttons and keys to move and zoom it.
function explorer({ vm, intid, from, to, numbered = [], compact = false }) {
  const whole = [from, to];
  const box = el("div", {
    class: "pathbox",
    tabindex: "0",
    role: "group",
    "aria-label": `timeline of ${intid === null ? "all LPIs" : `LPI ${intid}`}: + and - zoom, arrows move, 0 shows all`,
    onkeydown: (event) => key(event),
  });
  const told = el("span", { class: "dim mono" });
  const draw = () => {
    const width = Math.max(box.clientWidth || 900, 480);
    const kept = inDetail(from, to);
    box.replaceChildren(picture({ vm, intid, from, to, width, numbered, compact }));
    told.textContent = `${seconds(from, 6)} to ${seconds(to, 6)} s (${duration(to - from)})${kept ? "" : "; single events are kept only in parts of it"}`;
  };
  const zoom = (factor, about = 0.5) => {
    const middle = from + (to - from) * about,
      span = Math.min(Math.max((to - from) * factor, 200), SPAN * 1.02 + 1000);
    from = middle - span * about;
    to = from + span;
    draw();
  };
  const move = (share) => {
    const by = (to - from) * share;
    from += by;
    to += by;
    draw();
  };
  const reset = () => {
    [from, to] = whole;
    draw();
  };
  const key = (event) => {
    const does = {
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      ArrowLeft: () => move(-0.25),
      ArrowRight: () => move(0.25),
      0: reset,
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    does();
  };
  box.addEventListener("dblclick", (event) => {
    const bounds = box.getBoundingClientRect();
    zoom(0.25, Math.min(Math.max((event.clientX - bounds.left - LEFT) / (bounds.width - LEFT), 0), 1));
  });
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth !== width) {
      width = box.clientWidth;
      draw();
    }
  }).observe(box);
  draw();
  return el(
    "figure",
    { class: "explorer" },
    box,
    el(
      "figcaption",
      {},
      el(
        "span",
        { class: "buttons" },
        button("\u2212", () => zoom(2), { "aria-label": "zoom out" }),
        button("+", () => zoom(0.5), { "aria-label": "zoom in" }),
        button("\u2190", () => move(-0.25), { "aria-label": "earlier" }),
        button("\u2192", () => move(0.25), { "aria-label": "later" }),
        button("all", reset),
      ),
      told,
      legend(),
    ),
  );
}

// Whether single events of this stretch are in the page.
function inDetail(from, to) {
  const S = REPORT.single;
  return S.whole || S.from_ns.some((begin, at) => begin <= Math.max(from, 0) && S.to_ns[at] >= Math.min(to, SPAN));
}

// The stretch that shows a finding: the records of its first occurrence, with some room. Records that come much later
// than those before them are of another occurrence.
function stretchOf(finding) {
  const times = finding.evidence.map((item) => item.time_ns).sort((a, b) => a - b);
  if (finding.time_ns !== null && !times.length) times.push(finding.time_ns);
  if (!times.length) return null;
  const first =
    finding.time_ns === null
      ? 0
      : Math.max(
          times.findIndex((time) => time >= finding.time_ns),
          0,
        );
  let a = first,
    b = first;
  const near = (gap) => gap <= 30 * (times[b] - times[a]) + 2e7;
  while (b + 1 < times.length && near(times[b + 1] - times[b])) b++;
  while (a > 0 && near(times[a] - times[a - 1])) a--;
  const span = times[b] - times[a],
    room = Math.max(span * 0.06, span ? 2e5 : 2e6);
  return [times[a] - room, times[b] + room];
}

// Whose path shows a finding: {vm, intid}; an intid of null is all LPIs of the VM. Null where nothing can be drawn.
function pathOf(finding) {
  const vm = finding.vm ?? (REPORT.vms.length === 1 ? REPORT.vms[0].vm : null);
  // What is said of the capture itself, with no record to show, happened nowhere.
  if (vm === null || finding.time_ns === null || (finding.kind === "evidence" && !finding.evidence.length)) return null;
  return { vm, intid: finding.intid ?? finding.subjects.find((one) => one.intid !== null)?.intid ?? null };
}

function flags(finding) {
  return finding.evidence.map((item, at) => ({
    at: item.time_ns,
    label: String(at + 1),
    words: `${at + 1}: ${seconds(item.time_ns)} ${item.event} ${item.text}`,
  }));
}
