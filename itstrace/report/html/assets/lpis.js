// All LPIs, and the life of the one that is chosen.
async function viewLpis(main) {
  await frames();
  let chosen = null,
    sought = null,
    life = null,
    then = null;
  const L = F.lpis;
  const cellOf = (name) => (i) =>
    el(
      "span",
      { title: isKnown(L[name][i]) ? `${number(L[name][i])} ns` : null },
      isKnown(L[name][i]) ? duration(L[name][i]) : "",
    );
  const several = REPORT.vms.length > 1;
  const columns = [
    ...(several
      ? [{ title: "VM", right: true, kind: "mono", cell: (i) => String(L.vm[i]), value: (i) => L.vm[i] }]
      : []),
    { title: "LPI", right: true, kind: "mono", cell: (i) => lpiLink(L.vm[i], L.intid[i]), value: (i) => L.intid[i] },
    {
      title: "device",
      right: true,
      kind: "mono",
      cell: (i) => (isKnown(L.device_id[i]) ? hexa(L.device_id[i]) : ""),
      value: (i) => L.device_id[i],
    },
    {
      title: "event",
      right: true,
      kind: "mono",
      cell: (i) => (isKnown(L.event_id[i]) ? String(L.event_id[i]) : ""),
      value: (i) => L.event_id[i],
    },
    {
      title: "findings",
      right: true,
      cell: (i) =>
        L.findings[i]
          ? el(
              "a",
              { class: "tight", href: href({ view: "findings", for: L.intid[i] }) },
              badge(L.worst[i], number(L.findings[i])),
            )
          : "",
      // The worst first, then those with most.
      value: (i) => (L.findings[i] ? (3 - SEVERITIES.indexOf(L.worst[i])) * 1e6 + L.findings[i] : null),
    },
    { title: "MSIs", right: true, kind: "mono", cell: (i) => number(L.injections[i]), value: (i) => L.injections[i] },
    {
      title: "delivered",
      right: true,
      kind: "mono",
      cell: (i) => number(L.deliveries[i]),
      value: (i) => L.deliveries[i],
    },
    {
      title: "coalesced",
      right: true,
      kind: "mono",
      cell: (i) => number(L.coalesced[i]),
      value: (i) => L.coalesced[i],
    },
    { title: "p50", right: true, kind: "mono", cell: cellOf("p50"), value: (i) => L.p50[i] },
    { title: "p99", right: true, kind: "mono", cell: cellOf("p99"), value: (i) => L.p99[i] },
    { title: "max", right: true, kind: "mono", cell: cellOf("max"), value: (i) => L.max[i] },
    { title: "moves", right: true, kind: "mono", cell: (i) => number(L.moves[i]), value: (i) => L.moves[i] },
    { title: "vCPU", right: true, kind: "mono", cell: (i) => known(L.target_vcpu[i]), value: (i) => L.target_vcpu[i] },
    { title: "on", cell: (i) => truth(L.enabled[i]), value: (i) => L.enabled[i] },
    { title: "delivered on vCPU", wide: true, cell: (i) => shareBar(sharesOf(i)) },
  ];
  const grid = new Grid({
    label: "LPIs",
    columns,
    rows: L.rows,
    fit: "window",
    open: (i) => change({ lpi: `${L.vm[i]}:${L.intid[i]}`, t: null }),
    mark: (i) => (`${L.vm[i]}:${L.intid[i]}` === chosen ? "chosen" : ""),
    empty: "no LPI fits",
  });
  const bar = filters([{ name: "q", label: "Search", placeholder: "8193, 0x10, error" }], ({ q }) =>
    change({ q: q || null }, { replace: true }),
  );
  const count = el("span", { class: "dim" }),
    detail = el("div", { class: "life" });
  main.append(
    heading("LPIs", count),
    bar.node,
    capped(REPORT.kept.lpis, "LPIs", `itstrace analyze ${REPORT.file} --json -`) ?? "",
    el("div", { class: "pair" }, grid.node, detail),
  );
  return {
    focus: bar.focus,
    update(where) {
      bar.set(where);
      if (where.q !== sought) {
        sought = where.q;
        const q = (sought ?? "").toLowerCase();
        const shown = grid.filter(
          q
            ? (i) =>
                [
                  String(L.intid[i]),
                  isKnown(L.device_id[i]) ? hexa(L.device_id[i]) : "",
                  `vcpu ${known(L.target_vcpu[i])}`,
                  L.worst[i] ?? "",
                ].some((text) => text.includes(q))
            : null,
        );
        count.textContent = shown === L.rows ? plural(L.rows, "LPI") : `${number(shown)} of ${number(L.rows)} shown`;
      }
      if ((where.lpi ?? null) !== chosen) {
        chosen = where.lpi ?? null;
        then = null;
        const i = F.lpiByKey.get(chosen);
        life = i === undefined ? null : lifeCard(i);
        detail.replaceChildren(
          ...(life ? [life.node] : chosen ? [el("p", { class: "empty" }, `The report holds no LPI ${chosen}.`)] : []),
        );
        if (life) {
          grid.go(i);
          if (!main.hidden) detail.scrollIntoView({ block: "nearest" });
        } else grid.draw(true);
      }
      if (life && (where.t ?? null) !== then) {
        then = where.t ?? null;
        life.at(then);
      }
    },
  };
}

// On which vCPUs an LPI was delivered, and how often: [[vcpu, count]], by vCPU.
function sharesOf(i) {
  return (F.lpis.shares[i] ?? "")
    .split(" ")
    .filter(Boolean)
    .map((part) => part.split(":").map(Number));
}

// The same as the terminal says it: the most first.
function shareWords(shares) {
  const most = [...shares].sort(([a, m], [b, n]) => n - m || a - b);
  return listed(most.map(([vcpu, count]) => `vCPU ${vcpu} (${number(count)})`));
}

// On which vCPUs: a bar, and the numbers; `words`: as the terminal says it.
function shareBar(shares, words = null) {
  const total = shares.reduce((sum, [, count]) => sum + count, 0);
  if (!total) return "";
  return el(
    "span",
    { class: "shares" },
    shares.map(([vcpu, count]) =>
      el("span", {
        class: `share v${vcpu % 6}`,
        css: { width: `${Math.max((count / total) * 90, 3)}px` },
        title: `vCPU ${vcpu}: ${number(count)} of ${number(total)}`,
      }),
    ),
    words ?? el("span", { class: "num" }, shares.map(([vcpu, count]) => `${vcpu}: ${number(count)}`).join("  ")),
  );
}

// What became of its MSIs, in the words of itstrace/report/story.py.
function outcomesOf(vm, intid) {
  const M = F.msis,
    counts = new Map(),
    lost = [];
  for (const k of rowsOf("msis", vm, intid)) {
    const outcome = M.outcome[k] ?? "unknown";
    counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
    if (outcome === "unknown") lost.push(isKnown(M.filled_seq[k]));
  }
  const why = [
    lost.includes(true) && "in a list register that was not seen read back",
    lost.includes(false) && "its result or its queueing was not recorded",
  ].filter(Boolean);
  return [...counts]
    .sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))
    .map(([name, count]) => `${number(count)} ${name}${name === "unknown" ? ` (${why.join(" or ")})` : ""}`)
    .join(", ");
}

function lifeCard(i) {
  const L = F.lpis,
    vm = L.vm[i],
    intid = L.intid[i];
  const steps = story(vm, intid);
  const outcomes = outcomesOf(vm, intid),
    shares = sharesOf(i);
  const timed = steps.filter((step) => isKnown(step.time));
  // Where not all is kept, the first stretch in which the LPI was seen at work.
  const worked = REPORT.single.whole ? undefined : timed.find((step) => step.kind === "fill" || step.kind === "msi");
  const kept =
    worked &&
    REPORT.single.from_ns.findIndex((begin, at) => begin <= worked.time && worked.time <= REPORT.single.to_ns[at]);
  const from = worked ? REPORT.single.from_ns[kept] : timed.length ? timed[0].time : 0,
    to = worked ? REPORT.single.to_ns[kept] : timed.length ? timed.at(-1).time : SPAN;
  const room = Math.max((to - from) * 0.02, 1e4);
  const kinds = [...new Set(steps.map((step) => step.kind))];
  const marked = new Set(),
    told = el("p", { class: "told-now", role: "status" });
  const grid = new Grid({
    label: `life of LPI ${intid}`,
    rows: steps.length,
    fit: 18,
    mark: (k) => `step-${steps[k].kind} ${steps[k].severity ?? ""} ${marked.has(k) ? "chosen" : ""}`,
    columns: [
      { title: "time", right: true, kind: "mono", cell: (k) => moment(steps[k].time, { lpi: [vm, intid] }) },
      {
        title: "since",
        right: true,
        kind: "mono",
        cell: (k) =>
          k && isKnown(steps[k].time) && isKnown(steps[k - 1].time) && steps[k].seq !== steps[k - 1].seq
            ? delta(steps[k].time - steps[k - 1].time)
            : "",
      },
      {
        title: "cpu",
        right: true,
        kind: "mono",
        cell: (k) => (steps[k].cpu === null ? "" : String(steps[k].cpu).padStart(3, "0")),
      },
      { title: "kind", cell: (k) => el("span", { class: `kind ${steps[k].kind}` }, steps[k].kind) },
      {
        title: "what",
        wide: true,
        cell: (k) =>
          steps[k].finding
            ? el("a", { href: href({ finding: steps[k].finding }) }, steps[k].text)
            : steps[k].kind === "command"
              ? commandLink(steps[k].seq, steps[k].text)
              : steps[k].text,
      },
    ],
  });
  const pick = filters(
    [
      { name: "text", label: "Search", placeholder: "words" },
      { name: "kind", label: "Kind", values: kinds.map((kind) => [kind, kind]) },
    ],
    ({ text, kind }) =>
      grid.filter(
        (k) => (!kind || steps[k].kind === kind) && (!text || steps[k].text.toLowerCase().includes(text.toLowerCase())),
      ),
  );
  const several = REPORT.vms.length > 1 ? ` --vm ${vm}` : "";
  // Go to a moment (what the address says of it; null: none): the last step until then is marked.
  const at = (text) => {
    const offset = text === null ? null : parseTime(text);
    marked.clear();
    const last = offset === null ? -1 : steps.findLastIndex((step) => isKnown(step.time) && step.time <= offset);
    steps.forEach((step, k) => last >= 0 && step.time === steps[last].time && marked.add(k));
    told.textContent =
      text === null
        ? ""
        : offset === null
          ? noTime(text)
          : last < 0
            ? `Nothing is known of it at ${seconds(offset)} or before.`
            : offset - steps[last].time < 1000
              ? `At ${seconds(steps[last].time)}: step ${number(last + 1)} of ${number(steps.length)}, marked.`
              : `Nothing of it at ${seconds(offset)}. What came last, ${duration(offset - steps[last].time)} before, is marked.`;
    grid.draw(true);
    if (last < 0) return;
    grid.go(last);
    grid.scroller.scrollIntoView({ block: "nearest" });
  };
  const node = el(
    "article",
    { class: "card", "aria-label": `LPI ${intid}` },
    el(
      "div",
      { class: "cardhead" },
      el("h2", {}, `LPI ${intid}`, el("span", { class: "dim" }, ` VM ${vm}`)),
      el(
        "span",
        {},
        linkButton({ lpi: `${vm}:${intid}` }, `LPI ${intid}`),
        " ",
        button("close", () => change({ lpi: null, t: null })),
      ),
    ),
    facts([
      ["MSIs", [`${number(L.injections[i])}`, REPORT.single.whole && outcomes ? `: ${outcomes}` : ""]],
      ["event", isKnown(L.device_id[i]) ? `device ${hexa(L.device_id[i])}, event ${known(L.event_id[i])}` : null],
      [
        "delivered on",
        shares.length ? shareBar(shares, el("span", { class: "sharewords" }, shareWords(shares))) : null,
      ],
      [
        "MSI to list register",
        isKnown(L.p50[i]) ? `p50 ${duration(L.p50[i])}, p99 ${duration(L.p99[i])}, max ${duration(L.max[i])}` : null,
      ],
      [
        "findings",
        L.findings[i]
          ? REPORT.findings
              .filter((each) => each.intid === intid && (each.vm === vm || each.vm === null))
              .map((each, at) => [at ? ", " : "", findingLink(each.id)])
          : null,
      ],
    ]),
    timed.length
      ? explorer({ vm, scenes: () => [{ vm, intid, parts: inCapture([[from - room, to + room]]) }] }).node
      : null,
    el("h3", {}, `Its life in ${plural(steps.length, "step")}`),
    pick.node,
    told,
    grid.node,
    REPORT.single.whole
      ? null
      : el(
          "div",
          { class: "capped" },
          `Single events are kept around what findings rest on, and at some moments between: ${number(rowsOf("msis", vm, intid).length)} of its ${plural(L.injections[i], "MSI")} shown. The whole life:`,
          shell(`itstrace lpi ${REPORT.file} ${intid}${several}`),
        ),
  );
  return { node, at };
}
