// The whole capture and any part of it: MSIs, commands, vCPUs, from bins down to single events, by levels of detail.
const SINGLE_MOST = 3000;
let plotting = null;

// plotly.js stands in the page as text; it is run when the first plot is drawn.
function plotly() {
  plotting ??= new Promise((resolve, reject) => {
    const held = document.getElementById("plotly"),
      script = document.createElement("script");
    for (const id of (held.dataset.styles ?? "").split(" ").filter(Boolean)) document.head.append(el("meta", { id }));
    if (held.dataset.src) {
      script.src = held.dataset.src;
      if (held.dataset.integrity) {
        script.integrity = held.dataset.integrity;
        script.crossOrigin = "anonymous";
      }
      script.onload = () => resolve(globalThis.Plotly);
      script.onerror = () => reject(new Error("plotly.js could not be had"));
      document.head.append(script);
    } else {
      script.textContent = held.textContent;
      document.head.append(script);
      resolve(globalThis.Plotly);
    }
  });
  return plotting;
}

// plotly.js reads some markup in texts: what comes from the capture must not be any.
const escaped = (text) => plain(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const lpiColour = (intid) => colour(`v${intid % 6}`);

function plotLayout(more) {
  const ink = colour("ink"),
    line = colour("line");
  const axis = {
    gridcolor: line,
    linecolor: line,
    zerolinecolor: line,
    tickfont: { color: colour("dim"), size: 11 },
    fixedrange: true,
  };
  return {
    axis,
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 },
      margin: { l: 78, r: 14, t: 26, b: 40 },
      hoverlabel: {
        bgcolor: colour("card"),
        bordercolor: colour("dim"),
        font: { color: ink, size: 12 },
        align: "left",
      },
      showlegend: false,
      bargap: 0,
      barmode: "overlay",
      ...more,
    },
  };
}

async function viewTimeline(main) {
  await frames();
  const several = REPORT.vms.length > 1;
  const lanes = REPORT.vms
    .flatMap((vm) =>
      vm.vcpus.map((vcpu) => ({ vm: vm.vm, vcpu, name: several ? `VM ${vm.vm} vCPU ${vcpu}` : `vCPU ${vcpu}` })),
    )
    .slice(0, 32);
  const laneAt = new Map(lanes.map((lane, n) => [`${lane.vm}:${lane.vcpu}`, n]));
  const plot = el("div", {
    class: "plot",
    tabindex: "0",
    role: "group",
    "aria-label": "timeline: + and - zoom, arrows move, 0 shows all",
    onkeydown: (event) => key(event),
  });
  const told = el("span", { class: "dim mono" }),
    level = el("span", { class: "level" }),
    picked = el(
      "div",
      { class: "picked", role: "status" },
      el("span", { class: "dim" }, "Click on anything in the plot to see what it is, and where it leads."),
    );
  const bar = filters([{ name: "only", label: "Only LPI", placeholder: "8193" }], ({ only }) =>
    change({ only: only || null }, { replace: true }),
  );
  plot.style.setProperty("height", `${Math.min(290 + lanes.length * 46, 900)}px`);
  const latencyBox = el("section", { class: "card", id: "latency" });
  const kinds = ["msis", "queueings", "fills", "retargets", "configs", "runs"].map((name) => REPORT.kept[name]);
  const sums = [0, 1].map((at) => kinds.reduce((sum, each) => sum + each[at], 0));
  main.append(
    heading("Timeline", level),
    capped(
      sums,
      "single events",
      `itstrace events ${REPORT.file} ${REPORT.coverage.observations.INJECTIONS.events[0] ?? ""}`.trim(),
    ) ?? "",
    el(
      "div",
      { class: "card" },
      el(
        "div",
        { class: "plotbar" },
        bar.node,
        el(
          "span",
          { class: "buttons" },
          button("\u2212", () => zoom(2), { "aria-label": "zoom out" }),
          button("+", () => zoom(0.5), { "aria-label": "zoom in" }),
          button("\u2190", () => move(-0.25), { "aria-label": "earlier" }),
          button("\u2192", () => move(0.25), { "aria-label": "later" }),
          button("all", () => to(0, SPAN)),
        ),
        told,
      ),
      plot,
      picked,
      el(
        "div",
        { class: "legend" },
        el("span", {}, el("span", { class: "swatch run" }), "vCPU in the guest"),
        el(
          "span",
          {},
          el("span", { class: "swatch held" }),
          "LPIs in list registers (single events: one colour an LPI)",
        ),
        el("span", {}, "\u25c6 \u25b2 \u25cf findings"),
        el("span", {}, el("span", { class: "swatch lost" }), "records lost"),
      ),
    ),
    latencyBox,
  );
  let from = 0,
    until = SPAN,
    only = null,
    Plotly = null,
    quiet = false,
    saving = null;

  const to = (a, b) => {
    const span = Math.min(Math.max(b - a, 500), SPAN || 500);
    from = Math.max(Math.min(a, SPAN - span), 0);
    until = from + span;
    draw();
    clearTimeout(saving);
    saving = setTimeout(() => {
      if (route().view === "timeline")
        change(
          { t: null, from: from > 0 ? seconds(from) : null, to: until < SPAN ? seconds(until) : null },
          { replace: true },
        );
    }, 300);
  };
  const zoom = (factor) => {
    const middle = (from + until) / 2,
      half = ((until - from) * factor) / 2;
    to(middle - half, middle + half);
  };
  const move = (share) => {
    const by = (until - from) * share;
    to(from + by, until + by);
  };
  const key = (event) => {
    const does = {
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      ArrowLeft: () => move(-0.25),
      ArrowRight: () => move(0.25),
      0: () => to(0, SPAN),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  };
  const x = (time) => time / 1e9;

  // Rows of a frame that lie in view, at most one more than may be drawn.
  const inView = (T, begin, end, keep = null) => {
    const rows = [];
    for (let i = 0; i < T.rows && rows.length <= SINGLE_MOST; i++) {
      const a = T[begin][i],
        b = end === null ? a : isKnown(T[end][i]) ? T[end][i] : SPAN;
      if (b >= from && a <= until && (keep === null || keep(i))) rows.push(i);
    }
    return rows;
  };

  const pixels = (a, b) =>
    ((Math.min(isKnown(b) ? b : SPAN, until) - Math.max(a, from)) / (until - from)) * ((plot.clientWidth || 1000) - 92);
  // Rows whose words do not run into those of the one before; null for the others.
  const apart = (rows, time, room) => {
    let before = -Infinity;
    return rows.map((i) => {
      const at = pixels(from, time(i));
      if (at - before < room) return null;
      before = at;
      return i;
    });
  };

  // A share of each bin as one filled outline in its lane.
  const steps = (V, rows, lane, width, name, paint, opacity) => {
    const xs = [],
      ys = [],
      texts = [],
      places = [],
      base = lane + 0.39;
    rows.forEach((i, at) => {
      const a = V.bin[i] * width,
        b = a + width,
        top = base - Math.min(V[name][i] / 1000, 1) * 0.78;
      if (at && V.bin[rows[at - 1]] !== V.bin[i] - 1) {
        xs.push(xs.at(-1), x(a));
        ys.push(base, base);
        texts.push("", "");
        places.push(null, null);
      }
      if (!at) {
        xs.push(x(a));
        ys.push(base);
        texts.push("");
        places.push(null);
      }
      const words = `vCPU ${V.vcpu[i]}: ${fixed(V.running[i] / 10, 1)} % in the guest, ${fixed(V.held[i] / 1000, 2)} list registers in use<br>${seconds(a, 6)} to ${seconds(b, 6)}`,
        where = { kind: "bin", from: a, to: b };
      xs.push(x(a), x(b));
      ys.push(top, top);
      texts.push(words, words);
      places.push(where, where);
    });
    xs.push(xs.at(-1));
    ys.push(base);
    texts.push("");
    places.push(null);
    return {
      type: "scatter",
      mode: "lines",
      fill: "toself",
      fillcolor: paint,
      opacity,
      line: { width: 0, color: paint },
      x: xs,
      y: ys,
      yaxis: "y3",
      hoveron: "points",
      hoverinfo: "text",
      hovertext: texts,
      customdata: places,
    };
  };

  function traces() {
    const mine = only === null ? null : (T) => (i) => T.intid[i] === only;
    const found = [];
    const rows = inDetail(from, until)
      ? {
          msis: inView(F.msis, "time_ns", null, mine?.(F.msis)),
          commands: inView(F.commands, "time_ns", null),
          fills: inView(F.fills, "time_ns", "end_ns", mine?.(F.fills)),
          runs: inView(F.runs, "enter_ns", "exit_ns"),
        }
      : null;
    const single = rows !== null && Object.values(rows).reduce((sum, each) => sum + each.length, 0) <= SINGLE_MOST;
    if (single) {
      const M = F.msis,
        C = F.commands,
        L = F.fills,
        U = F.runs;
      found.push({
        type: "scatter",
        mode: "markers",
        x: rows.msis.map((i) => x(M.time_ns[i])),
        y: rows.msis.map((i) => (M.result[i] === 0 ? 1 : 0)),
        yaxis: "y",
        hoverinfo: "text",
        marker: {
          size: 8,
          symbol: rows.msis.map((i) => (M.result[i] === 0 ? "circle" : "circle-open")),
          color: rows.msis.map((i) => (isKnown(M.intid[i]) ? lpiColour(M.intid[i]) : colour("error"))),
          line: {
            width: 1.5,
            color: rows.msis.map((i) => (isKnown(M.intid[i]) ? lpiColour(M.intid[i]) : colour("error"))),
          },
        },
        text: rows.msis.map(
          (i) =>
            `MSI device ${hexa(M.device_id[i])} event ${known(M.event_id[i])}: LPI ${known(M.intid[i])}<br>${seconds(M.time_ns[i])}<br>${M.outcome[i] ?? ""}${isKnown(M.filled_ns[i]) ? `, in a list register after ${duration(M.filled_ns[i] - M.time_ns[i])}` : ""}`,
        ),
        customdata: rows.msis.map((i) => ({ kind: "msi", i })),
      });
      found.push({
        type: "scatter",
        mode: "markers+text",
        x: rows.commands.map((i) => x(C.time_ns[i])),
        y: rows.commands.map(() => 0.35),
        yaxis: "y2",
        hoverinfo: "text",
        textposition: "top center",
        textfont: { size: 10, color: colour("dim") },
        marker: {
          size: 10,
          symbol: rows.commands.map((i) => (C.verdict[i] === "ok" ? "line-ns" : "x-thin")),
          line: { width: 2, color: rows.commands.map((i) => colour(C.verdict[i] === "ok" ? "cmd" : "error")) },
        },
        text: apart(rows.commands, (i) => C.time_ns[i], 44).map((i) => (i === null ? "" : (C.opcode[i] ?? "?"))),
        hovertext: rows.commands.map((i) => `${C.text[i] ?? "?"}${verdictWords(i)}<br>${seconds(C.time_ns[i])}`),
        customdata: rows.commands.map((i) => ({ kind: "command", i })),
      });
      const bars = (T, list, begin, end, width, more) => ({
        type: "bar",
        orientation: "h",
        yaxis: "y3",
        base: list.map((i) => x(Math.max(T[begin][i], from))),
        x: list.map((i) =>
          x(
            Math.max(
              Math.min(isKnown(T[end][i]) ? T[end][i] : SPAN, until) - Math.max(T[begin][i], from),
              (until - from) / 1500,
            ),
          ),
        ),
        y: list.map((i) => laneAt.get(`${T.vm[i]}:${T.vcpu[i]}`)),
        width,
        hoverinfo: "text",
        ...more,
      });
      const ran = rows.runs.filter((i) => laneAt.has(`${U.vm[i]}:${U.vcpu[i]}`)),
        held = rows.fills.filter((i) => laneAt.has(`${L.vm[i]}:${L.vcpu[i]}`));
      found.push(
        bars(U, ran, "enter_ns", "exit_ns", 0.78, {
          marker: { color: colour("run") },
          hovertext: ran.map(
            (i) =>
              `vCPU ${U.vcpu[i]} in the guest<br>${seconds(U.enter_ns[i])} to ${seconds(U.exit_ns[i])} (${duration(U.exit_ns[i] - U.enter_ns[i])})`,
          ),
          customdata: ran.map((i) => ({ kind: "run", i })),
        }),
      );
      found.push(
        bars(L, held, "time_ns", "end_ns", 0.44, {
          marker: { color: held.map((i) => lpiColour(L.intid[i])), line: { width: 0.5, color: colour("card") } },
          text: held.map((i) => (pixels(L.time_ns[i], L.end_ns[i]) > 36 ? String(L.intid[i]) : "")),
          textposition: "inside",
          insidetextanchor: "start",
          textangle: 0,
          textfont: { size: 11, color: colour("flagtext") },
          hovertext: held.map(
            (i) =>
              `LPI ${L.intid[i]} in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]}<br>${seconds(L.time_ns[i])}${isKnown(L.end_ns[i]) ? ` to ${seconds(L.end_ns[i])} (${duration(L.end_ns[i] - L.time_ns[i])})<br>${FOUND[L.state[i]] ?? "not read back"}` : ", to the end"}`,
          ),
          customdata: held.map((i) => ({ kind: "fill", i })),
        }),
      );
      level.textContent = `single events: ${plural(rows.msis.length, "MSI")}, ${plural(rows.commands.length, "command")}, ${plural(rows.fills.length, "list register fill")}`;
    } else {
      // The finest level of which not too many bins are in view.
      const most = Math.min(Math.max(9000 / Math.max(lanes.length, 1), 260), 1400),
        share = (until - from) / SPAN;
      const finest = (fits) =>
        Math.max(
          0,
          REPORT.bins.findLastIndex(
            (bins, at) => share * bins <= fits && (at === 0 || F[`vcpu_bins${at}`].rows || !F.vcpu_bins0.rows),
          ),
        );
      const n = finest(most),
        width = SPAN / REPORT.bins[n],
        B = F[`bins${n}`],
        V = F[`vcpu_bins${n}`];
      const seen = (T, list = []) => {
        for (let i = 0; i < T.rows; i++) if ((T.bin[i] + 1) * width >= from && T.bin[i] * width <= until) list.push(i);
        return list;
      };
      const b = seen(B),
        v = seen(V).filter((i) => laneAt.has(`${V.vm[i]}:${V.vcpu[i]}`));
      const centre = (T) => (i) => x((T.bin[i] + 0.5) * width),
        rate = (count) => count / (width / 1e9);
      const span = (i) => `${seconds(B.bin[i] * width, 6)} to ${seconds((B.bin[i] + 1) * width, 6)}`;
      const where = b.map((i) => ({ kind: "bin", from: B.bin[i] * width, to: (B.bin[i] + 1) * width }));
      found.push({
        type: "bar",
        x: b.map(centre(B)),
        y: b.map((i) => rate(B.msis[i])),
        width: b.map(() => x(width)),
        yaxis: "y",
        marker: { color: colour("held") },
        hoverinfo: "text",
        hovertext: b.map((i) => `${plural(B.msis[i], "MSI")}, ${number(B.refused[i])} refused<br>${span(i)}`),
        customdata: where,
      });
      found.push({
        type: "bar",
        x: b.map(centre(B)),
        y: b.map((i) => B.commands[i]),
        width: b.map(() => x(width)),
        yaxis: "y2",
        marker: {
          color: b.map((i) => colour(B.faults[i] ? "error" : "cmd")),
          pattern: { shape: b.map((i) => (B.faults[i] ? "x" : "")), size: 4 },
        },
        hoverinfo: "text",
        hovertext: b.map((i) => `${plural(B.commands[i], "command")}, ${number(B.faults[i])} faulted<br>${span(i)}`),
        customdata: where,
      });
      found.push(
        ...lanes.flatMap((lane, at) => {
          const mine = v
            .filter((i) => V.vm[i] === lane.vm && V.vcpu[i] === lane.vcpu)
            .sort((a, b) => V.bin[a] - V.bin[b]);
          return mine.length
            ? [
                steps(V, mine, at, width, "running", colour("run"), 1),
                steps(V, mine, at, width, "held", colour("held"), 0.85),
              ]
            : [];
        }),
      );
      level.textContent = `level ${n + 1} of ${REPORT.bins.length + 1}: bins of ${duration(width)}; ${REPORT.single.whole ? "zoom in for single events" : "single events are kept where the axis is marked: zoom in there"}${only === null ? "" : "; bins are of all LPIs"}`;
    }
    const symbols = { error: "diamond", warning: "triangle-up", note: "circle" };
    const near = REPORT.findings
      .filter(
        (each) =>
          each.time_ns !== null &&
          each.time_ns >= from &&
          each.time_ns <= until &&
          (only === null || each.intid === only),
      )
      .slice(0, 300);
    found.push({
      type: "scatter",
      mode: "markers",
      x: near.map((each) => x(each.time_ns)),
      y: near.map((each) => ({ error: 2, warning: 1, note: 0 })[each.severity]),
      yaxis: "y4",
      cliponaxis: false,
      marker: {
        size: 11,
        symbol: near.map((each) => symbols[each.severity]),
        color: near.map((each) => colour(each.severity)),
      },
      hoverinfo: "text",
      hovertext: near.map((each) => `${each.id} ${escaped(each.name)}<br>${seconds(each.time_ns)}`),
      customdata: near.map((each) => ({ kind: "finding", id: each.id })),
    });
    const N = F.markers,
      notes = inView(N, "time_ns", null).slice(0, 400);
    found.push({
      type: "scatter",
      mode: "markers",
      x: notes.map((i) => x(N.time_ns[i])),
      y: notes.map(() => 0.5),
      yaxis: "y4",
      cliponaxis: false,
      marker: { size: 9, symbol: "line-ns", line: { width: 1.5, color: colour("dim") } },
      hoverinfo: "text",
      hovertext: notes.map(
        (i) => `note in the trace: ${escaped((N.text[i] ?? "").trim())}<br>${seconds(N.time_ns[i])}`,
      ),
      customdata: notes.map((i) => ({ kind: "marker", i })),
    });
    return { found, single };
  }

  async function draw() {
    try {
      Plotly ??= await plotly();
    } catch (error) {
      plot.replaceChildren(
        el("p", { class: "empty" }, `${error.message}. Without --assets cdn it is in the page itself.`),
      );
      return;
    }
    if (main.hidden) return;
    const { found, single } = traces();
    const step = niceStep((until - from) / Math.max(Math.floor((plot.clientWidth || 1000) / 150), 2));
    const ticks = ticksOf(from, until, step);
    const G = F.gaps,
      shapes = [];
    for (let i = 0; i < G.rows && shapes.length < 400; i++) {
      const a = isKnown(G.from_ns[i]) ? G.from_ns[i] : 0,
        b = isKnown(G.to_ns[i]) ? G.to_ns[i] : SPAN;
      if (b >= from && a <= until)
        shapes.push({
          type: "rect",
          xref: "x",
          yref: "paper",
          x0: x(a),
          x1: x(Math.max(b, a + (until - from) / 800)),
          y0: 0,
          y1: 1,
          layer: "below",
          fillcolor: colour("warning"),
          opacity: 0.2,
          line: { width: 1, dash: "dot", color: colour("warning") },
        });
    }
    if (!REPORT.single.whole)
      REPORT.single.from_ns.forEach((a, n) => {
        const b = REPORT.single.to_ns[n];
        if (b >= from && a <= until)
          shapes.push({
            type: "rect",
            xref: "x",
            yref: "paper",
            x0: x(a),
            x1: x(Math.max(b, a + (until - from) / 600)),
            y0: -0.012,
            y1: 0,
            fillcolor: colour("accent"),
            line: { width: 0 },
          });
      });
    const now = route().t && parseTime(route().t);
    if (isKnown(now))
      shapes.push({
        type: "line",
        xref: "x",
        yref: "paper",
        x0: x(now),
        x1: x(now),
        y0: 0,
        y1: 1,
        line: { color: colour("ink"), width: 1.2, dash: "dash" },
      });
    const { axis, layout } = plotLayout({});
    Object.assign(layout, {
      shapes,
      annotations: [
        [1, F.markers.rows ? "findings, notes" : "findings"],
        [0.9, single ? "MSIs" : "MSIs per second"],
        [0.69, "commands"],
        [0.53, "vCPUs"],
      ].map(([y, text]) => ({
        text,
        x: 0.003,
        y,
        xref: "paper",
        yref: "paper",
        xanchor: "left",
        yanchor: "top",
        showarrow: false,
        font: { size: 11, color: colour("dim") },
        bgcolor: colour("card"),
        opacity: 0.85,
        borderpad: 1,
      })),
      dragmode: "zoom",
      hovermode: "closest",
      xaxis: {
        ...axis,
        fixedrange: false,
        range: [x(from), x(until)],
        tickvals: ticks.map(x),
        ticktext: ticks.map((time) => axisText(time, step)),
        anchor: "y3",
        showspikes: false,
        title: { text: "seconds, of the capture's clock", font: { size: 11, color: colour("dim") }, standoff: 8 },
      },
      yaxis4: {
        ...axis,
        domain: [0.92, 1],
        range: [-0.7, 2.7],
        showticklabels: false,
        showgrid: false,
        zeroline: false,
      },
      yaxis: {
        ...axis,
        domain: [0.72, 0.9],
        ...(single
          ? { range: [-0.6, 1.6], tickvals: [0, 1], ticktext: ["refused", "taken"] }
          : { rangemode: "tozero", nticks: 4 }),
      },
      yaxis2: {
        ...axis,
        domain: [0.56, 0.69],
        ...(single ? { range: [0, 1.35], showticklabels: false, showgrid: false } : { rangemode: "tozero", nticks: 3 }),
      },
      yaxis3: {
        ...axis,
        domain: [0, 0.53],
        range: [lanes.length - 0.5, -0.5],
        tickvals: lanes.map((_, n) => n),
        ticktext: lanes.map((lane) => lane.name),
        showgrid: false,
        zeroline: false,
      },
    });
    quiet = true;
    await Plotly.react(plot, found, layout, { displayModeBar: false, responsive: true, doubleClick: false });
    quiet = false;
    told.textContent = `${seconds(from, 6)} to ${seconds(until, 6)} s (${duration(until - from)})`;
    if (!plot.dataset.wired) {
      plot.dataset.wired = "yes";
      plot.on("plotly_relayout", (event) => {
        if (quiet) return;
        const a = event["xaxis.range[0]"] ?? event["xaxis.range"]?.[0],
          b = event["xaxis.range[1]"] ?? event["xaxis.range"]?.[1];
        if (a !== undefined) to(Math.round(a * 1e9), Math.round(b * 1e9));
      });
      plot.on("plotly_doubleclick", () => zoom(4));
      plot.on("plotly_click", (event) => {
        const places = event.points.map((point) => point.customdata).filter(Boolean);
        if (places.length) pick(places.find((each) => each.kind !== "run") ?? places[0]);
      });
    }
    plot.dataset.drawn = single ? "single" : "bins";
  }

  function pick(what) {
    const M = F.msis,
      L = F.fills,
      C = F.commands,
      U = F.runs;
    const at = (time) => [
      el("span", {}, timeLink(time)),
      el("a", { href: href({ view: "tables", t: seconds(time) }) }, "tables then"),
    ];
    const say = {
      msi: ({ i }) => [
        `MSI from device ${hexa(M.device_id[i])}, event ${known(M.event_id[i])}: ${M.outcome[i] ?? "unknown"}`,
        at(M.time_ns[i]),
        isKnown(M.intid[i]) ? el("span", {}, "LPI ", lpiLink(M.vm[i], M.intid[i])) : null,
      ],
      fill: ({ i }) => [
        el(
          "span",
          {},
          "LPI ",
          lpiLink(L.vm[i], L.intid[i]),
          ` in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]} for ${isKnown(L.end_ns[i]) ? duration(L.end_ns[i] - L.time_ns[i]) : "the rest"}`,
        ),
        at(L.time_ns[i]),
      ],
      command: ({ i }) => [commandLink(C.seq[i], C.text[i] ?? "?"), verdictBadge(i), at(C.time_ns[i])],
      run: ({ i }) => [
        `vCPU ${U.vcpu[i]} in the guest for ${duration(U.exit_ns[i] - U.enter_ns[i])}`,
        at(U.enter_ns[i]),
      ],
      finding: ({ id }) => [findingLink(id), F.findingById.get(id).message, at(F.findingById.get(id).time_ns)],
      marker: ({ i }) => [`note in the trace: ${(F.markers.text[i] ?? "").trim()}`, at(F.markers.time_ns[i])],
      bin: ({ from: a, to: b }) => [
        `${seconds(a, 6)} to ${seconds(b, 6)}`,
        button("zoom in", () => to(a - (b - a) * 4, b + (b - a) * 4)),
        el("a", { href: href({ view: "tables", t: seconds(a) }) }, "tables then"),
      ],
    }[what.kind](what);
    picked.replaceChildren(
      ...say
        .flat(Infinity)
        .filter(Boolean)
        .map((each) => (each instanceof Node ? each : el("span", {}, each))),
    );
  }

  let shown = null;
  const repaint = () => {
    if (!main.hidden && shown !== null) {
      draw();
      drawLatencies(latencyBox);
    }
  };
  addEventListener("themechange", () => setTimeout(repaint));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  return {
    focus: bar.focus,
    async update(where) {
      bar.set(where);
      const key = JSON.stringify([where.t, where.from, where.to, where.only]);
      if (key !== shown) {
        only = /^\d+$/.test(where.only ?? "") ? Number(where.only) : null;
        const time = where.t === undefined ? null : parseTime(where.t);
        if (time !== null) {
          const half = Math.min(Math.max(SPAN / 200, 2e6), 2e7);
          from = Math.max(time - half, 0);
          until = Math.min(time + half, SPAN);
        } else {
          from = parseTime(where.from ?? "") ?? 0;
          until = parseTime(where.to ?? "") ?? SPAN;
        }
        if (until <= from) {
          from = 0;
          until = SPAN;
        }
        await draw();
        if (shown === null) await drawLatencies(latencyBox);
        shown = key;
      }
      if (where.show === "latency") latencyBox.scrollIntoView();
    },
  };
}

// How long delivered MSIs took to a list register: by device or by LPI, each a row of a map, and in numbers.
let latencyBy = "device";
async function drawLatencies(box) {
  const T = F.latencies,
    D = F.device_latencies,
    L = F.lpis;
  const per = REPORT.buckets_per_decade;
  const rows = new Map();
  for (let i = 0; i < T.rows; i++) {
    const key = latencyBy === "device" ? `${T.vm[i]}:${T.device_id[i]}` : `${T.vm[i]}:${T.intid[i]}`;
    if (!rows.has(key)) rows.set(key, new Map());
    rows.get(key).set(T.bucket[i], (rows.get(key).get(T.bucket[i]) ?? 0) + T.count[i]);
  }
  const several = REPORT.vms.length > 1;
  const name = (vm, id) =>
    `${latencyBy === "device" ? `device ${hexa(id)}` : `LPI ${id}`}${several ? ` (VM ${vm})` : ""}`;
  const list =
    latencyBy === "device"
      ? Array.from({ length: D.rows }, (_, i) => ({
          vm: D.vm[i],
          id: D.device_id[i],
          count: D.count[i],
          p50: D.p50[i],
          p99: D.p99[i],
          max: D.max[i],
        }))
      : Array.from({ length: L.rows }, (_, i) => ({
          vm: L.vm[i],
          id: L.intid[i],
          count: L.deliveries[i],
          p50: L.p50[i],
          p99: L.p99[i],
          max: L.max[i],
        }))
          .filter((row) => isKnown(row.max))
          .sort((a, b) => b.max - a.max);
  const choose = el(
    "select",
    {
      "aria-label": "latencies by",
      onchange: () => {
        latencyBy = choose.value;
        drawLatencies(box);
      },
    },
    [
      ["device", "by device"],
      ["lpi", "by LPI"],
    ].map(([value, text]) => el("option", { value, selected: value === latencyBy }, text)),
  );
  if (!list.length) {
    box.replaceChildren(el("h2", {}, "Latency"), el("p", { class: "none" }, "no delivered MSI whose way was recorded"));
    return;
  }
  const drawn = list.slice(0, 30),
    plot = el("div", {
      class: "plot",
      role: "img",
      "aria-label": "map of latencies: the same numbers stand in the table below",
    });
  plot.style.setProperty("height", `${90 + drawn.length * 22}px`);
  const grid = new Grid({
    label: "latencies",
    rows: list.length,
    fit: Math.min(list.length, 10),
    open: latencyBy === "lpi" ? (n) => change({ view: "lpis", lpi: `${list[n].vm}:${list[n].id}` }) : null,
    columns: [
      {
        title: latencyBy === "device" ? "device" : "LPI",
        right: true,
        kind: "mono",
        cell: (n) => (latencyBy === "lpi" ? lpiLink(list[n].vm, list[n].id) : hexa(list[n].id)),
        value: (n) => list[n].id,
      },
      ...(several
        ? [{ title: "VM", right: true, kind: "mono", cell: (n) => String(list[n].vm), value: (n) => list[n].vm }]
        : []),
      {
        title: "delivered",
        right: true,
        kind: "mono",
        cell: (n) => number(list[n].count),
        value: (n) => list[n].count,
      },
      ...["p50", "p99", "max"].map((each) => ({
        title: each,
        right: true,
        kind: "mono",
        cell: (n) => el("span", { title: `${number(list[n][each])} ns` }, duration(list[n][each])),
        value: (n) => list[n][each],
      })),
      {
        title: "in ns: p50, p99, max",
        wide: true,
        kind: "mono",
        cell: (n) => ["p50", "p99", "max"].map((each) => number(list[n][each])).join("  "),
      },
    ],
  });
  box.replaceChildren(
    el("div", { class: "cardhead" }, el("h2", {}, "Latency, MSI to list register"), choose),
    plot,
    drawn.length < list.length
      ? el("p", { class: "dim" }, `the ${drawn.length} slowest of ${number(list.length)} drawn; the table has all`)
      : (null ?? ""),
    grid.node,
  );
  const Plotly = await plotly().catch(() => null);
  if (Plotly === null) return;
  const buckets = [...new Set([...rows.values()].flatMap((row) => [...row.keys()]))].sort((a, b) => a - b);
  const low = buckets[0] - 1,
    high = buckets.at(-1) + 1,
    columns = Array.from({ length: high - low + 1 }, (_, n) => low + n);
  const z = drawn.map((row) => columns.map((bucket) => rows.get(`${row.vm}:${row.id}`)?.get(bucket) ?? null));
  const edge = (bucket) => duration(10 ** (bucket / per));
  const { axis, layout } = plotLayout({});
  const decades = columns.filter((bucket) => bucket % per === 0);
  Object.assign(layout, {
    margin: { l: 110, r: 14, t: 6, b: 40 },
    xaxis: {
      ...axis,
      tickvals: decades.map((bucket) => bucket - 0.5),
      ticktext: decades.map(edge),
      title: { text: "latency; each cell says how many", font: { size: 11, color: colour("dim") } },
    },
    yaxis: { ...axis, autorange: "reversed", type: "category", showgrid: false, automargin: true },
  });
  await Plotly.react(
    plot,
    [
      {
        type: "heatmap",
        x: columns,
        y: drawn.map((row) => name(row.vm, row.id)),
        z: z.map((row) => row.map((count) => (count === null ? null : Math.log10(count) + 0.3))),
        text: z.map((row) => row.map((count) => (count === null ? "" : number(count)))),
        texttemplate: drawn.length * columns.length < 2000 ? "%{text}" : undefined,
        textfont: { size: 10 },
        hoverinfo: "text",
        hovertext: z.map((row, r) =>
          row.map((count, c) =>
            count === null
              ? ""
              : `${name(drawn[r].vm, drawn[r].id)}: ${plural(count, "MSI")}<br>${edge(columns[c])} to ${edge(columns[c] + 1)}`,
          ),
        ),
        colorscale: [
          [0, colour("soft")],
          [1, colour("held")],
        ],
        showscale: false,
        xgap: 1,
        ygap: 2,
      },
    ],
    layout,
    { displayModeBar: false, responsive: true, staticPlot: false },
  );
}
