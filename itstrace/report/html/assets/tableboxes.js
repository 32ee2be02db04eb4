// The tables of an ITS as of one moment, each a box: what its entries hold, who set them, what changed and what is gone.

// Whether an interval holds at an offset.
const holds = (T, k, at) => !(T.from_ns[k] > at) && !(T.to_ns[k] <= at);

// The command that set an entry, or ended it.
function setBy(T, k, by = "set_by") {
  if (T.assumed[k] === 1 && by === "set_by") return el("span", { class: "dim" }, "seen in use");
  if (by === "set_by" && !isKnown(T.from_seq[k])) return el("span", { class: "dim" }, "before the capture");
  if (by === "set_by" && T.under && isKnown(T.under[k])) {
    const i = F.commandBySeq.get(T.under[k]);
    if (i !== undefined)
      return el(
        "a",
        { class: "mono", href: href({ command: T.under[k] }), title: `read while KVM handled ${F.commands.text[i]}` },
        F.commands.opcode[i] ?? "?",
      );
  }
  if (!isKnown(T[by][k])) return el("span", { class: "dim" }, "no command");
  const i = F.commandBySeq.get(T[by][k]);
  return i === undefined
    ? el("span", { class: "dim" }, "a command that is not kept")
    : el(
        "a",
        { class: "mono", href: href({ command: T[by][k] }), title: F.commands.text[i] },
        F.commands.opcode[i] ?? "?",
      );
}

// What ended an entry that is gone: a command, or the end of its VM.
function endedBy(T, k) {
  const torn = endOf(T.vm[k]);
  return !isKnown(T.ended_by[k]) && torn < SPAN && T.to_ns[k] >= torn
    ? el("span", { class: "dim" }, "VM torn down")
    : ["ended by ", setBy(T, k, "ended_by")];
}

function changedAt(T, k, time) {
  if (!isKnown(time[k])) return "";
  return moment(time[k], { lpi: T.intid ? [T.vm[k], T.intid[k]] : null });
}

// The commands that changed an entry of a VM's tables at one offset, as links, and what else did.
function changersAt(vm, at) {
  const by = new Set();
  for (const [name] of TABLES) {
    const T = F[name];
    for (let k = 0; k < T.rows; k++) {
      if (T.vm[k] !== vm) continue;
      if (T.from_ns[k] === at) by.add(T.under && isKnown(T.under[k]) ? T.under[k] : T.set_by[k]);
      if (T.to_ns[k] === at) by.add(T.ended_by[k]);
    }
  }
  const known = [...by].filter((seq) => F.commandBySeq.has(seq)).sort((a, b) => a - b);
  const links = known
    .slice(0, 3)
    .map((seq, n) => [n ? ", " : "by ", commandLink(seq, F.commands.text[F.commandBySeq.get(seq)] ?? "?")]);
  if (known.length > 3) return [links, ` and ${plural(known.length - 3, "other command")}`];
  if (known.length) return links;
  return at >= endOf(vm) && endOf(vm) < SPAN ? "as the VM was torn down" : "by no command";
}

// Entries that hold now, and those that held before and are gone; each with what became of it.
function entriesAt({ place, at, before }, name, keys, its = true) {
  const T = F[name],
    now = [],
    gone = [],
    present = new Set();
  const key = (k) => keys.map((each) => T[each][k]).join(":");
  for (let k = 0; k < T.rows; k++) {
    if (T.vm[k] !== place.vm || (its && T.its[k] !== place.its)) continue;
    if (holds(T, k, at)) {
      now.push({ k, mark: T.from_ns[k] > before ? "new" : "" });
      present.add(key(k));
    }
  }
  const held = new Set();
  for (let k = 0; k < T.rows; k++) {
    if (T.vm[k] !== place.vm || (its && T.its[k] !== place.its)) continue;
    if (holds(T, k, before)) held.add(key(k));
    if (holds(T, k, before) && !holds(T, k, at) && !present.has(key(k))) gone.push({ k, mark: "gone" });
  }
  for (const one of now) if (one.mark && held.has(key(one.k))) one.mark = "changed";
  const rows = [...now, ...gone];
  rows.sort((a, b) => {
    for (const each of keys) {
      const by = T[each][a.k] - T[each][b.k];
      if (by) return by;
    }
    return 0;
  });
  return { T, rows, count: now.length };
}

const MARKS = { new: "+ new", changed: "~ changed", gone: "\u2212 gone" };

function tableBox(title, { T, rows, count }, columns, fit) {
  const grid = new Grid({
    label: title,
    rows: rows.length,
    fit: rows.length > fit ? fit : 0,
    mark: (n) => (rows[n].mark ? `row-${rows[n].mark}` : ""),
    empty: "none",
    columns: [
      ...columns.map((column) => ({
        ...column,
        cell: (n) => column.cell(rows[n].k, T),
        value: column.value && ((n) => column.value(rows[n].k, T)),
      })),
      {
        title: "set by",
        kind: "how",
        cell: (n) => (rows[n].mark === "gone" ? endedBy(T, rows[n].k) : setBy(T, rows[n].k)),
      },
      {
        title: "at",
        right: true,
        kind: "mono how",
        cell: (n) => changedAt(T, rows[n].k, rows[n].mark === "gone" ? T.to_ns : T.from_ns),
        value: (n) => T.from_ns[rows[n].k],
      },
      {
        title: "",
        wide: true,
        kind: "how",
        cell: (n) => (rows[n].mark ? el("span", { class: `change ${rows[n].mark}` }, MARKS[rows[n].mark]) : ""),
      },
    ],
  });
  return el(
    "section",
    { class: `tablebox ${title.split(" ")[0].toLowerCase()}`, "data-count": count },
    el("h2", {}, title, el("span", { class: "dim" }, ` ${number(count)}`)),
    grid.node,
  );
}

// All tables as of `at`; `before`: since when changes are marked; `end`: whether that is the end of the capture.
function boxesAt(given) {
  const { place, at, end } = given;
  const D = entriesAt(given, "devices", ["device_id"]),
    K = entriesAt(given, "collections", ["icid"]),
    M = entriesAt(given, "mappings", ["device_id", "event_id"]);
  const targets = entriesAt(given, "targets", ["intid"], false),
    configs = entriesAt(given, "configurations", ["intid"], false);
  const target = new Map(
      targets.rows.filter((one) => one.mark !== "gone").map((one) => [targets.T.intid[one.k], one.k]),
    ),
    config = new Map(configs.rows.filter((one) => one.mark !== "gone").map((one) => [configs.T.intid[one.k], one.k]));
  const aim = new Map(
    K.rows.filter((one) => one.mark !== "gone").map((one) => [K.T.icid[one.k], K.T.target_vcpu[one.k]]),
  );
  const pending = latchedAt(place.vm, at, end);
  const C = configs.T,
    G = targets.T;
  const ofConfig = (intid, name) => (config.has(intid) ? C[name][config.get(intid)] : NaN);
  const num = (title, name, text = known) => ({
    title,
    right: true,
    kind: "mono",
    cell: (k, T) => text(T[name][k]),
    value: (k, T) => T[name][k],
  });
  const lpi = {
    title: "LPI",
    right: true,
    kind: "mono",
    cell: (k, T) => lpiLink(T.vm[k], T.intid[k], at),
    value: (k, T) => T.intid[k],
  };
  const orphan = (k, T) => !isKnown(T.icid[k]) && T.assumed[k] !== 1;
  const events = [
    num("device", "device_id", hexa),
    num("event", "event_id"),
    lpi,
    {
      title: "coll",
      right: true,
      kind: "mono",
      cell: (k, T) => (orphan(k, T) ? "none" : known(T.icid[k])),
      value: (k, T) => T.icid[k],
    },
    {
      title: "vCPU",
      right: true,
      kind: "mono",
      cell: (k, T) => {
        const mine = aim.get(T.icid[k]),
          lpi = target.has(T.intid[k]) ? G.target_vcpu[target.get(T.intid[k])] : NaN;
        const own = orphan(k, T) && !isKnown(lpi) ? "none" : known(mine);
        return !isKnown(lpi) || lpi === mine ? own : isKnown(mine) ? `${mine} (LPI \u2192 ${lpi})` : String(lpi);
      },
    },
    { title: "on", cell: (k, T) => truth(ofConfig(T.intid[k], "enabled")) },
    { title: "prio", right: true, kind: "mono", cell: (k, T) => priority(ofConfig(T.intid[k], "priority")) },
    { title: "pending", cell: (k, T) => truth(pending(T.intid[k])) },
  ];
  return [
    tableBox(
      "Devices",
      D,
      [
        num("device", "device_id", hexa),
        {
          title: "event ids",
          right: true,
          kind: "mono",
          cell: (k, T) => (isKnown(T.event_bits[k]) ? number(2 ** T.event_bits[k]) : "?"),
          value: (k, T) => T.event_bits[k],
        },
        { title: "ITT", right: true, kind: "mono", cell: (k, T) => hexa(T.itt_gpa[k]) },
      ],
      10,
    ),
    tableBox(
      "Collections",
      K,
      [
        num("collection", "icid"),
        {
          title: "vCPU",
          right: true,
          kind: "mono",
          cell: (k, T) => (isKnown(T.target_vcpu[k]) ? String(T.target_vcpu[k]) : T.assumed[k] === 1 ? "?" : "none"),
          value: (k, T) => T.target_vcpu[k],
        },
      ],
      10,
    ),
    tableBox("Events (the ITTs)", M, events, 16),
    tableBox(
      "Targets of LPIs",
      targets,
      [lpi, num("vCPU", "target_vcpu"), { title: "pending", cell: (k, T) => truth(pending(T.intid[k])) }],
      14,
    ),
    tableBox(
      "Configuration of LPIs",
      configs,
      [
        lpi,
        { title: "on", cell: (k, T) => truth(T.enabled[k]), value: (k, T) => T.enabled[k] },
        num("prio", "priority", priority),
      ],
      14,
    ),
  ];
}

// The software latch of each LPI at an offset; NaN where no record tells, or the page does not keep it.
function latchedAt(vm, at, end) {
  const T = F.latches,
    S = REPORT.single;
  const begin = S.whole
    ? -Infinity
    : Math.max(-Infinity, ...S.from_ns.filter((from, n) => from <= at && at <= S.to_ns[n]));
  const kept = S.whole || S.from_ns.some((from, n) => from <= at && at <= S.to_ns[n]);
  const found = new Map(),
    stop = end && endOf(vm) < SPAN ? endOf(vm) - 1 : at;
  if (kept)
    for (let i = 0; i < T.rows; i++)
      if (T.vm[i] === vm && T.time_ns[i] <= stop && T.time_ns[i] >= begin) {
        const held = found.get(T.intid[i]);
        if (held === undefined || T.seq[i] >= T.seq[held]) found.set(T.intid[i], i);
      }
  return (intid) => (found.has(intid) ? T.latched[found.get(intid)] : NaN);
}
