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

// What stands above the slider.
function stripLegend() {
  const item = (shape, text) =>
    el("span", {}, svg("svg", { width: 12, height: 12, "aria-hidden": "true", class: "path" }, shape), text);
  const mark = (severity) => svg("path", { d: "M2 2h8l-4 7z", class: `mark-${severity}` });
  return el(
    "div",
    { class: "legend striplegend" },
    item(svg("path", { d: "M3 12V5M6 12V1M9 12V7", class: "moment" }), "changes of the tables, the more the higher"),
    item(mark("error"), "an error"),
    item(mark("warning"), "a warning"),
  );
}

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
    notice = el("div", { role: "status" }),
    boxes = el("div", { class: "tablegrid" });
  main.append(
    heading("Tables through time"),
    notice,
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
      stripLegend(),
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
          : last === at
            ? ["Changed at this very moment ", changersAt(place.vm, at), "."]
            : [
                "The change before was at ",
                timeLink(last),
                ` (${delta(last - at)}), `,
                changersAt(place.vm, last),
                ".",
              ],
      ]
        .flat(Infinity)
        .map((each) => (each instanceof Node ? each : document.createTextNode(each))),
    );
    boxes.replaceChildren(...boxesAt({ place, at, before, end: asked === undefined }));
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
      notice.replaceChildren(
        ...(where.t !== undefined && time === null
          ? [el("p", { class: "notice" }, `${noTime(where.t)} The end is shown.`)]
          : []),
      );
      at = time ?? (endOf(place.vm) < SPAN ? endOf(place.vm) - 1 : SPAN);
      drawStrip();
      draw();
    },
  };
}
