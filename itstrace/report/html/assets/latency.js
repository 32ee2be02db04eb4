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
  const listOf = (frame, id, count) =>
    Array.from({ length: frame.rows }, (_, i) => ({
      vm: frame.vm[i],
      id: frame[id][i],
      count: frame[count][i],
      p50: frame.p50[i],
      p99: frame.p99[i],
      max: frame.max[i],
    }));
  const list =
    latencyBy === "device"
      ? listOf(D, "device_id", "count")
      : listOf(L, "intid", "deliveries")
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
  followWidth(plot);
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
      ...["p50", "p99", "max"].map((each) => ({
        title: `${each}, ns`,
        right: true,
        kind: "mono",
        cell: (n) => number(list[n][each]),
        value: (n) => list[n][each],
      })),
      { title: "", wide: true, cell: () => "" },
    ],
  });
  box.replaceChildren(
    el("div", { class: "cardhead" }, el("h2", {}, "Latency, MSI to list register"), choose),
    plot,
    drawn.length < list.length
      ? el("p", { class: "dim" }, `the ${drawn.length} slowest of ${number(list.length)} drawn; the table has all`)
      : "",
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
