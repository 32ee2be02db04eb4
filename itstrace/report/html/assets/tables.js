// The tables of the ITS as of any moment: what each entry holds, which command set it, and what just changed.
const SINCE = [
  ["change", "the change before"],
  ["1000000", "1 ms"],
  ["10000000", "10 ms"],
  ["100000000", "100 ms"],
  ["1000000000", "1 s"],
  ["start", "the start"],
];
const STEPS = 2000;

// Whether an interval holds at an offset.
const holds = (T, k, at) => !(T.from_ns[k] > at) && !(T.to_ns[k] <= at);

async function viewTables(main) {
  await frames();
  const places = REPORT.vms.flatMap((vm) =>
    (vm.its.length ? vm.its : [{ its: 0, base_gpa: null }]).map((its) => ({
      vm: vm.vm,
      its: its.its,
      base: its.base_gpa,
    })),
  );
  if (!places.length) {
    main.append(heading("Tables"), el("p", { class: "empty" }, "No VM was seen."));
    return null;
  }
  let at = null,
    place = places[0],
    since = "change",
    asked = undefined;
  const moments = new Map();
  const momentsOf = (vm) => {
    if (!moments.has(vm)) {
      const found = new Set();
      for (const [name] of TABLES) {
        const T = F[name];
        for (let k = 0; k < T.rows; k++) {
          if (T.vm[k] !== vm) continue;
          if (isKnown(T.from_ns[k])) found.add(T.from_ns[k]);
          if (isKnown(T.to_ns[k])) found.add(T.to_ns[k]);
        }
      }
      moments.set(vm, Float64Array.from(found).sort());
    }
    return moments.get(vm);
  };
  const slider = el("input", {
    type: "range",
    min: "0",
    max: String(STEPS),
    step: "1",
    "aria-label": "moment of the capture",
    oninput: () => {
      at = Math.round((slider.value / STEPS) * SPAN);
      draw();
    },
    onchange: () => keep(),
  });
  const exact = el("input", {
    type: "text",
    size: "20",
    class: "mono",
    spellcheck: "false",
    autocomplete: "off",
    onchange: () => {
      const time = parseTime(exact.value);
      exact.setCustomValidity(time === null ? "no time within the capture" : "");
      exact.reportValidity();
      if (time !== null) change({ t: exact.value.trim() });
    },
  });
  const step = (by) => {
    const list = momentsOf(place.vm),
      from = lowerBound(list, at + (by > 0 ? 1 : 0));
    const next = by > 0 ? list[from] : list[from - 1];
    if (next !== undefined) {
      at = next;
      draw();
      keep();
    }
  };
  const keep = () => change({ t: seconds(at) }, { replace: true });
  const whose = el(
    "select",
    {
      onchange: () => {
        place = places[Number(whose.value)];
        change({ its: whose.value === "0" ? null : `${place.vm}/${place.its}` }, { replace: true });
      },
    },
    places.map((one, k) =>
      el("option", { value: k }, `VM ${one.vm}, ITS ${one.its}${one.base ? ` at ${one.base}` : ""}`),
    ),
  );
  const compare = el(
    "select",
    {
      onchange: () => {
        since = compare.value;
        draw();
      },
    },
    SINCE.map(([value, text]) => el("option", { value }, text)),
  );
  const strip = el("div", { class: "strip", "aria-hidden": "true" }),
    told = el("p", { class: "told-now", role: "status" }),
    boxes = el("div", { class: "tablegrid" });
  main.append(
    heading("Tables through time"),
    el(
      "div",
      { class: "card timebar" },
      el(
        "div",
        { class: "filters" },
        el("label", {}, el("span", {}, "As of"), exact),
        el("label", {}, el("span", {}, "ITS"), whose),
        el("label", {}, el("span", {}, "Mark what changed since"), compare),
        el(
          "span",
          { class: "buttons" },
          button("\u2190 change", () => step(-1), { title: "the change before (k)" }),
          button("change \u2192", () => step(1), { title: "the next change (j)" }),
          button("the end", () => change({ t: null })),
        ),
      ),
      strip,
      slider,
      told,
    ),
    ["mappings", "targets", "configurations", "devices", "collections"].some(
      (name) => REPORT.kept[name][0] < REPORT.kept[name][1],
    )
      ? el(
          "div",
          { class: "capped" },
          `${number(REPORT.kept.mappings[0])} of ${number(REPORT.kept.mappings[1])} event entries are kept: outside the stretches around findings, entries may be missing.`,
        )
      : "",
    boxes,
  );

  const setBy = (T, k, by = "set_by") => {
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
  };
  const when = (T, k) => (isKnown(T.from_ns[k]) ? timeLink(T.from_ns[k]) : "");

  // Entries that hold now, and those that held before and are gone; each with what became of it.
  const entries = (name, keys, before, its = true) => {
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
  };
  const MARKS = { new: "+ new", changed: "~ changed", gone: "\u2212 gone" };
  const markColumn = (rows) => ({
    title: "",
    wide: true,
    cell: (n) => (rows[n].mark ? el("span", { class: `change ${rows[n].mark}` }, MARKS[rows[n].mark]) : ""),
  });
  const box = (title, { T, rows, count }, columns, fit) => {
    const grid = new Grid({
      label: title,
      rows: rows.length,
      fit: Math.min(Math.max(rows.length, 1), fit),
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
          cell: (n) => (rows[n].mark === "gone" ? ["ended by ", setBy(T, rows[n].k, "ended_by")] : setBy(T, rows[n].k)),
        },
        {
          title: "at",
          right: true,
          kind: "mono",
          cell: (n) => (rows[n].mark === "gone" ? timeLink(T.to_ns[rows[n].k]) : when(T, rows[n].k)),
          value: (n) => T.from_ns[rows[n].k],
        },
        markColumn(rows),
      ],
    });
    return el(
      "section",
      { class: `tablebox ${title.split(" ")[0].toLowerCase()}`, "data-count": count },
      el("h2", {}, title, el("span", { class: "dim" }, ` ${number(count)}`)),
      grid.node,
    );
  };

  function draw() {
    const list = momentsOf(place.vm);
    const last = list[lowerBound(list, at + 1) - 1];
    const before = since === "change" ? (last ?? 0) - 1 : since === "start" ? 0 : at - Number(since);
    slider.value = String(Math.round((at / SPAN) * STEPS));
    slider.setAttribute("aria-valuetext", `${seconds(at)} seconds`);
    if (document.activeElement !== exact) exact.value = seconds(at);
    told.replaceChildren(
      ...[
        "As of ",
        timeLink(at, 9, "timeline"),
        ` (${duration(at)} from the start). `,
        last === undefined
          ? "Nothing had changed yet."
          : ["The change before was at ", timeLink(last), ` (${delta(last - at)}).`],
      ]
        .flat()
        .map((each) => (each instanceof Node ? each : document.createTextNode(each))),
    );
    const D = entries("devices", ["device_id"], before),
      K = entries("collections", ["icid"], before),
      M = entries("mappings", ["device_id", "event_id"], before);
    const targets = entries("targets", ["intid"], before, false),
      configs = entries("configurations", ["intid"], before, false);
    const target = new Map(
        targets.rows.filter((one) => one.mark !== "gone").map((one) => [targets.T.intid[one.k], one.k]),
      ),
      config = new Map(configs.rows.filter((one) => one.mark !== "gone").map((one) => [configs.T.intid[one.k], one.k]));
    const aim = new Map(
      K.rows.filter((one) => one.mark !== "gone").map((one) => [K.T.icid[one.k], K.T.target_vcpu[one.k]]),
    );
    const pending = latchedAt(place.vm, at, asked === undefined);
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
    const orphan = (k, T) => !isKnown(T.icid[k]) && T.assumed[k] !== 1;
    const events = [
      num("device", "device_id", hexa),
      num("event", "event_id"),
      {
        title: "LPI",
        right: true,
        kind: "mono",
        cell: (k, T) => lpiLink(T.vm[k], T.intid[k]),
        value: (k, T) => T.intid[k],
      },
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
    boxes.replaceChildren(
      box(
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
      box(
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
      box("Events (the ITTs)", M, events, 16),
      box(
        "Targets of LPIs",
        targets,
        [
          {
            title: "LPI",
            right: true,
            kind: "mono",
            cell: (k, T) => lpiLink(T.vm[k], T.intid[k]),
            value: (k, T) => T.intid[k],
          },
          num("vCPU", "target_vcpu"),
          { title: "pending", cell: (k, T) => truth(pending(T.intid[k])) },
        ],
        14,
      ),
      box(
        "Configuration of LPIs",
        configs,
        [
          {
            title: "LPI",
            right: true,
            kind: "mono",
            cell: (k, T) => lpiLink(T.vm[k], T.intid[k]),
            value: (k, T) => T.intid[k],
          },
          { title: "on", cell: (k, T) => truth(T.enabled[k]), value: (k, T) => T.enabled[k] },
          num("prio", "priority", priority),
        ],
        14,
      ),
    );
  }

  function drawStrip() {
    const width = strip.clientWidth || 900,
      bins = new Uint32Array(width);
    for (const time of momentsOf(place.vm)) bins[Math.min(Math.floor((time / SPAN) * width), width - 1)]++;
    const most = Math.max(1, ...bins);
    const marks = REPORT.findings
      .filter((each) => each.time_ns !== null && each.severity !== "note")
      .slice(0, 200)
      .map((each) =>
        svg("path", { d: `M${(each.time_ns / SPAN) * width - 4} 0h8l-4 7z`, class: `mark-${each.severity}` }),
      );
    strip.replaceChildren(
      svg(
        "svg",
        { width, height: 34, class: "path" },
        Array.from(bins, (count, x) =>
          count
            ? svg("line", {
                x1: x + 0.5,
                x2: x + 0.5,
                y1: 34,
                y2: 34 - 6 - (20 * Math.log1p(count)) / Math.log1p(most),
                class: "moment",
              })
            : null,
        ),
        marks,
      ),
    );
  }
  new ResizeObserver(drawStrip).observe(strip);

  return {
    keys: { j: () => step(1), k: () => step(-1) },
    focus: () => exact.focus(),
    update(where) {
      const found = places.findIndex((one) => `${one.vm}/${one.its}` === where.its);
      place = places[Math.max(found, 0)];
      whose.value = String(Math.max(found, 0));
      const time = where.t === undefined ? null : parseTime(where.t);
      asked = where.t;
      if (where.t !== undefined && time === null) announce(`${where.t} is no time within the capture`);
      at = time ?? (endOf(place.vm) < SPAN ? endOf(place.vm) - 1 : SPAN);
      drawStrip();
      draw();
    },
  };
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
