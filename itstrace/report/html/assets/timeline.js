// The room of labels at the left, and of nothing at the right, in pixels.
const GUTTER = { l: 132, r: 16 };
const KEY_MOST = 12;

// The LPI that alone is asked for: 8193, or 0:8193 for that of VM 0. {only, wrong: why there is none}
function onlyOf(text) {
  if (!text) return { only: null, wrong: null };
  const told = /^(?:(\d+):)?(\d+|0x[\da-f]+)$/i.exec(text);
  if (!told)
    return { only: null, wrong: `\u201c${text}\u201d is no LPI: 8193, or 0:8193 for that of VM 0. All are shown.` };
  const only = { vm: told[1] === undefined ? null : Number(told[1]), intid: Number(told[2]) };
  const L = F.lpis;
  for (let i = 0; i < L.rows; i++)
    if (L.intid[i] === only.intid && (only.vm === null || L.vm[i] === only.vm)) return { only, wrong: null };
  const [kept, total] = REPORT.kept.lpis;
  return {
    only,
    wrong:
      kept < total
        ? `The report holds no LPI ${text}; it keeps ${number(kept)} of ${number(total)}.`
        : `No LPI ${text} occurs in the capture.`,
  };
}

// The whole capture and any part of it: MSIs, commands, vCPUs, from bins down to single events, by levels of detail.
async function viewTimeline(main) {
  await frames();
  const several = REPORT.vms.length > 1;
  const lanes = REPORT.vms
    .flatMap((vm) =>
      vm.vcpus.map((vcpu) => ({ vm: vm.vm, vcpu, name: several ? `VM ${vm.vm} vCPU ${vcpu}` : `vCPU ${vcpu}` })),
    )
    .slice(0, 32);
  const plot = el("div", {
    class: "plot",
    tabindex: "0",
    role: "group",
    "aria-label": "timeline: + and - zoom, arrows move, 0 shows all",
    onkeydown: (event) => zoomKey(event, steer),
  });
  const told = el("span", { class: "dim mono" }),
    level = el("span", { class: "level" }),
    picked = el(
      "div",
      { class: "picked", role: "status" },
      el("span", { class: "dim" }, "Click on anything in the plot to see what it is, and where it leads."),
    );
  const notice = el("div", { role: "status" }),
    lpiKey = el("div", { class: "legend" });
  const bar = filters([{ name: "only", label: "Only LPI", placeholder: several ? "0:8193" : "8193" }], ({ only }) =>
    change({ only: only || null }, { replace: true }),
  );
  followWidth(plot);
  plot.style.setProperty("height", `${Math.min(290 + lanes.length * 46, 900)}px`);
  const latencyBox = el("section", { class: "card", id: "latency" });
  const kinds = ["msis", "queueings", "fills", "retargets", "configs", "runs"].map((name) => REPORT.kept[name]);
  const sums = [0, 1].map((at) => kinds.reduce((sum, each) => sum + each[at], 0));
  const steer = {
    zoom: (factor) => zoom(factor),
    move: (share) => move(share),
    reset: () => to(0, SPAN),
  };
  main.append(
    heading("Timeline", level),
    notice,
    capped(
      sums,
      "single events",
      `itstrace events ${REPORT.file} ${REPORT.coverage.observations.INJECTIONS.events[0] ?? ""}`.trim(),
    ) ?? "",
    el(
      "div",
      { class: "card" },
      el("div", { class: "plotbar" }, bar.node, zoomButtons(steer), told),
      plot,
      picked,
      el(
        "div",
        { class: "legend" },
        el("span", {}, el("span", { class: "swatch run" }), "vCPU in the guest"),
        el("span", {}, el("span", { class: "swatch held" }), "LPIs in list registers (single events: coloured by LPI)"),
        el("span", {}, "\u25c6 \u25b2 \u25cf findings"),
        F.gaps.rows
          ? el(
              "span",
              {},
              svg(
                "svg",
                { width: 20, height: 12, class: "path", "aria-hidden": "true" },
                svg("rect", { width: 20, height: 12, class: "gap" }),
              ),
              "records lost",
            )
          : null,
      ),
      lpiKey,
    ),
    latencyBox,
  );
  let from = 0,
    until = SPAN,
    only = null,
    Plotly = null,
    quiet = false,
    saving = null;

  // `push`: as an entry of its own in the history, which Back leaves.
  const to = (a, b, { push = false } = {}) => {
    if (push) save();
    const span = Math.min(Math.max(b - a, 500), SPAN || 500);
    from = Math.max(Math.min(a, SPAN - span), 0);
    until = from + span;
    draw();
    clearTimeout(saving);
    saving = push ? save({ replace: false }) : setTimeout(save, 300);
  };
  // The address says what is in view, as soon as it stays so.
  const save = ({ replace = true } = {}) => {
    if (replace && saving === null) return null;
    clearTimeout(saving);
    saving = null;
    if (route().view === "timeline")
      change({ t: null, from: from > 0 ? seconds(from) : null, to: until < SPAN ? seconds(until) : null }, { replace });
    return null;
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
    const {
      found,
      single,
      level: words,
      most,
      lpis,
    } = tracesOf({ from, until, only, lanes, width: (plot.clientWidth || 1000) - GUTTER.l - GUTTER.r });
    level.textContent = words;
    lpiKey.replaceChildren(...keyOf(lpis));
    const step = niceStep((until - from) / Math.max(Math.floor((plot.clientWidth || 1000) / 150), 2));
    const ticks = ticksOf(from, until, step);
    const shapes = [];
    if (!REPORT.single.whole)
      REPORT.single.from_ns.forEach((a, n) => {
        const b = REPORT.single.to_ns[n];
        if (b >= from && a <= until)
          shapes.push({
            type: "rect",
            xref: "x",
            yref: "paper",
            x0: plotted(a),
            x1: plotted(Math.max(b, a + (until - from) / 600)),
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
        x0: plotted(now),
        x1: plotted(now),
        y0: 0,
        y1: 1,
        line: { color: colour("ink"), width: 1.2, dash: "dash" },
      });
    const { axis, layout } = plotLayout({});
    Object.assign(layout, {
      shapes,
      annotations: [
        [1, F.markers.rows ? "findings, notes" : "findings"],
        [0.9, single ? "MSIs" : "MSIs per s"],
        [0.69, "commands"],
        [0.53, "vCPUs"],
      ].map(([y, text]) => ({
        text,
        x: 0,
        xshift: 4 - GUTTER.l,
        y,
        xref: "paper",
        yref: "paper",
        xanchor: "left",
        yanchor: "top",
        showarrow: false,
        font: { size: 11.5, color: colour("ink") },
        borderpad: 0,
      })),
      margin: { ...layout.margin, ...GUTTER },
      dragmode: "zoom",
      hovermode: "closest",
      xaxis: {
        ...axis,
        fixedrange: false,
        range: [plotted(from), plotted(until)],
        tickvals: ticks.map(plotted),
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
          : { range: [0, most[0]], nticks: 4 }),
      },
      yaxis2: {
        ...axis,
        domain: [0.56, 0.69],
        ...(single ? { range: [0, 1.35], showticklabels: false, showgrid: false } : { range: [0, most[1]], nticks: 3 }),
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
    await Plotly.react(plot, found, layout, {
      displayModeBar: false,
      responsive: true,
      doubleClick: false,
      showTips: false,
    });
    quiet = false;
    told.textContent = `${seconds(from, 6)} to ${seconds(until, 6)} s (${duration(until - from)})`;
    if (!plot.dataset.wired) {
      plot.dataset.wired = "yes";
      plot.on("plotly_relayout", (event) => {
        if (quiet) return;
        const a = event["xaxis.range[0]"] ?? event["xaxis.range"]?.[0],
          b = event["xaxis.range[1]"] ?? event["xaxis.range"]?.[1];
        if (a !== undefined) to(Math.round(a * 1e9), Math.round(b * 1e9), { push: true });
      });
      plot.on("plotly_doubleclick", () => zoom(4));
      plot.on("plotly_click", (event) => {
        const places = event.points.map((point) => point.customdata).filter(Boolean);
        const behind = ["run", "gap"];
        if (places.length) pick(places.find((each) => !behind.includes(each.kind)) ?? places[0]);
      });
    }
    plot.dataset.drawn = single ? "single" : "bins";
  }

  function pick(what) {
    const M = F.msis,
      L = F.fills,
      C = F.commands,
      U = F.runs;
    const at = (time, lpi = null) => [
      el("span", {}, timeLink(time)),
      el("a", { href: href({ view: "tables", t: seconds(time) }) }, "tables then"),
      lpi && isKnown(lpi[1])
        ? el("a", { href: href({ lpi: `${lpi[0]}:${lpi[1]}`, t: seconds(time) }) }, `life of LPI ${lpi[1]} then`)
        : null,
    ];
    const say = {
      msi: ({ i }) => [
        `MSI from device ${hexa(M.device_id[i])}, event ${known(M.event_id[i])}: ${M.outcome[i] ?? "unknown"}`,
        at(M.time_ns[i], [M.vm[i], M.intid[i]]),
      ],
      fill: ({ i }) => [
        el(
          "span",
          {},
          "LPI ",
          lpiLink(L.vm[i], L.intid[i], L.time_ns[i]),
          ` in list register ${known(L.lr[i])} of vCPU ${L.vcpu[i]} for ${isKnown(L.end_ns[i]) ? duration(L.end_ns[i] - L.time_ns[i]) : "the rest"}`,
        ),
        at(L.time_ns[i], [L.vm[i], L.intid[i]]),
      ],
      command: ({ i }) => [
        commandLink(C.seq[i], C.text[i] ?? "?"),
        verdictBadge(i),
        at(C.time_ns[i], [C.vm[i], C.intid[i]]),
      ],
      run: ({ i }) => [
        `vCPU ${U.vcpu[i]} in the guest for ${duration(U.exit_ns[i] - U.enter_ns[i])}`,
        at(U.enter_ns[i]),
      ],
      finding: ({ id }) => [findingLink(id), F.findingById.get(id).message, at(F.findingById.get(id).time_ns)],
      marker: ({ i }) => [`note in the trace: ${(F.markers.text[i] ?? "").trim()}`, at(F.markers.time_ns[i])],
      gap: ({ i, from: a }) => [
        `${isKnown(F.gaps.lost[i]) ? plural(F.gaps.lost[i], "record") : "records"} lost on CPU ${known(F.gaps.cpu[i])}`,
        at(a),
      ],
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

  // Which colour is which LPI, where single events are drawn.
  function keyOf(lpis) {
    if (!lpis.length) return [];
    const items = lpis
      .slice(0, KEY_MOST)
      .map(([vm, intid]) =>
        el("span", {}, el("span", { class: `swatch v${intid % 6}` }), several ? `VM ${vm} ` : "", lpiLink(vm, intid)),
      );
    const more = lpis.length > KEY_MOST ? el("span", {}, `and ${number(lpis.length - KEY_MOST)} more`) : null;
    return [el("span", {}, "LPIs in view:"), ...items, more].filter(Boolean);
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
        const asked = onlyOf(where.only);
        only = asked.only;
        const wrong = ["t", "from", "to"].map((name) => where[name]).filter((each) => each && parseTime(each) === null);
        notice.replaceChildren(
          ...[...wrong.map(noTime), asked.wrong].filter(Boolean).map((words) => el("p", { class: "notice" }, words)),
        );
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
