// The bars of a picture: stays of vCPUs in the guest, an LPI that waits, an LPI in a list register, and their texts.

// No bar of an LPI is narrower, however short it was.
const LEAST_BAR = 4.5;

// Stays in the guest. Those that would lie on one another at this scale become one.
function runsOf(drawing) {
  const { vm, scale, laneOf, lane, layers } = drawing,
    U = F.runs,
    last = new Map();
  for (let i = 0; i < U.rows; i++) {
    if (U.vm[i] !== vm) continue;
    const y = laneOf.get(U.vcpu[i]),
      a = U.enter_ns[i],
      b = isKnown(U.exit_ns[i]) ? U.exit_ns[i] : endOf(vm);
    if (y === undefined || b < scale.from || a > scale.to) continue;
    for (const piece of scale.whole) {
      if (b < piece.from || a > piece.to) continue;
      const x1 = scale.x(Math.max(a, piece.from)),
        x2 = scale.x(Math.min(b, piece.to));
      const prior = last.get(U.vcpu[i]);
      if (prior && x1 >= prior.x1 && x1 - prior.x2 < 1 && prior.piece === piece) {
        prior.x2 = Math.max(x2, prior.x2);
        prior.node.setAttribute("width", String(Math.max(prior.x2 - prior.x1, 0.7)));
        continue;
      }
      const node = svg("rect", { x: x1, y: y + 4, width: Math.max(x2 - x1, 0.7), height: lane - 8, class: "run" });
      last.set(U.vcpu[i], { x1, x2, node, piece });
      layers.runs.push(node);
      drawing.used.add("run");
    }
  }
}

// A bar of an LPI, and where it goes beyond the stretch how much longer. `y`: of its lane; `at`, `height`: in it.
function bar(drawing, { from, to, y, at, height, name, words, label = "", isOpen = false }) {
  const place = placed(drawing, from, to);
  if (!place || y === undefined || drawing.drawn > MOST_BARS) return;
  const { scale, layers, right } = drawing;
  const wide = Math.max(place[1] - place[0], LEAST_BAR),
    x1 = Math.min(place[0], right - wide),
    x2 = x1 + wide;
  drawing.drawn++;
  drawing.used.add(name);
  const rect = { x: x1, y: y + at, width: wide, height, rx: name === "held" ? 1.5 : 0, class: name };
  layers.bars.push(svg("rect", rect, titled(words)));
  const middle = y + at + height / 2;
  const more = to - scale.to > scale.perPixel,
    less = scale.from - from > scale.perPixel;
  // Its ends beyond the stretch are points, not edges.
  const point = (x, by) =>
    layers.bars.push(
      svg("path", {
        d: `M${x} ${middle - height / 2 - 2}l${by} ${height / 2 + 2}l${-by} ${height / 2 + 2}z`,
        class: `${name} tip`,
      }),
    );
  if (more) point(x2, 7);
  if (less) point(x1, -7);
  const texts = [
    less ? [`\u2190 ${duration(scale.from - from)} before`, "start"] : null,
    label ? [label, less ? "middle" : "start"] : null,
    more ? [`${isOpen ? "\u2265 " : ""}${duration(to - scale.to)} more \u2192`, "end"] : null,
  ].filter(Boolean);
  if (name === "held") {
    drawing.stays.push({ x1, x2, y: y + at });
    inBar(drawing, texts, x1, x2, y + at, height);
  } else overBar(drawing, texts, x1, x2, y + at);
}

// Texts within a bar: as many as there is room for, what it is before how long.
function inBar(drawing, texts, x1, x2, y, height) {
  const order = [...texts].sort((a, b) => a[0].includes(" ") - b[0].includes(" "));
  let room = x2 - x1 - 6;
  for (const [text, anchor] of order) {
    const wide = text.length * CHAR + 6;
    if (wide > room) continue;
    room -= anchor === "middle" ? wide * 2 : wide;
    const from = { start: x1, middle: (x1 + x2 - wide) / 2, end: x2 - wide }[anchor];
    drawing.texts.push({ name: "inbar", text, from, to: from + wide, x1, y, at: y + height / 2 + 3.6 });
  }
}

// A flat bar has its texts above it.
function overBar(drawing, texts, x1, x2, y) {
  for (const [text, anchor] of texts) {
    const wide = text.length * 6 + 6;
    if (wide > x2 - x1) continue;
    const from = anchor === "start" ? x1 : x2 - wide;
    drawing.texts.push({ name: "overbar", text, from, to: from + wide, x1, y, at: y - 3 });
  }
}

// Texts of bars, where no other bar or text is.
function textsOf({ texts, stays, laneOf, scale, layers }) {
  const free = ({ name, from, to, x1, y }) => {
    const above = [...laneOf.values()].findLast((each) => each <= y) + 7;
    const isCrossed = (each) => each.x2 > from && each.x1 < to;
    return (
      !scale.cuts.some(isCrossed) &&
      !stays.some((each) => each.y === above && isCrossed(each) && !(name === "inbar" && each.x1 === x1))
    );
  };
  const put = [];
  for (const each of texts) {
    if (!free(each) || put.some((other) => other.y === each.y && other.to > each.from && other.from < each.to))
      continue;
    put.push(each);
    const [from, name] = [each.from + 3, each.name];
    layers.bars.push(svg("text", { x: from, y: each.at, class: name }, each.text));
  }
}

const rowsIn = ({ intid, vm }, name) => (intid === null ? allOf(name, vm) : rowsOf(name, vm, intid));

function waitsOf(drawing) {
  const { intid, vm, laneOf, lane } = drawing,
    Q = F.queued;
  for (const i of rowsIn(drawing, "queued")) {
    const to = isKnown(Q.to_ns[i]) ? Q.to_ns[i] : endOf(vm);
    const until = isKnown(Q.to_ns[i]) ? `${seconds(to)} (${duration(to - Q.from_ns[i])})` : "the end of the capture";
    bar(drawing, {
      from: Q.from_ns[i],
      to,
      y: laneOf.get(Q.vcpu[i]),
      at: lane - 13,
      height: 5,
      name: "queued",
      isOpen: !isKnown(Q.to_ns[i]),
      words: `${intid === null ? `LPI ${Q.intid[i]} ` : ""}pending, queued for vCPU ${Q.vcpu[i]}: ${seconds(Q.from_ns[i])} to ${until}`,
    });
  }
}

function staysOf(drawing) {
  const { intid, vm, laneOf, lane } = drawing,
    L = F.fills;
  for (const i of rowsIn(drawing, "fills")) {
    const open = !isKnown(L.end_ns[i]),
      to = open ? endOf(vm) : L.end_ns[i],
      y = laneOf.get(L.vcpu[i]);
    const until = open
      ? "the end of the capture"
      : `${seconds(to)} (${duration(to - L.time_ns[i])}), ${FOUND[L.state[i]] ?? "not read back"}`;
    const register = isKnown(L.lr[i]) ? `LR${L.lr[i]}` : "LR";
    bar(drawing, {
      from: L.time_ns[i],
      to,
      y,
      at: 7,
      height: lane - 28,
      name: "held",
      isOpen: open,
      label: intid === null ? `${L.intid[i]} ${register}` : register,
      words: `${intid === null ? `LPI ${L.intid[i]} ` : ""}in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]}: ${seconds(L.time_ns[i])} to ${until}`,
    });
  }
}
