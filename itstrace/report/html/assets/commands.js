// The whole stream of commands, decoded, with the model's verdict.
async function viewCommands(main) {
  await frames();
  let chosen = null,
    sought = null;
  const C = F.commands;
  const several = new Set(Array.from({ length: C.rows }, (_, i) => `${C.vm[i]}/${C.its[i]}`)).size > 1;
  const columns = [
    {
      title: "time",
      right: true,
      kind: "mono",
      cell: (i) => moment(C.time_ns[i], { lpi: [C.vm[i], C.intid[i]], room: true }),
      value: (i) => C.seq[i],
    },
    { title: "cpu", right: true, kind: "mono", cell: (i) => String(C.cpu[i]).padStart(3, "0"), value: (i) => C.cpu[i] },
    { title: "task", kind: "mono", spare: true, cell: (i) => C.task[i], value: (i) => C.task[i] },
    ...(several
      ? [
          {
            title: "vm/its",
            right: true,
            kind: "mono",
            cell: (i) => `${C.vm[i]}/${C.its[i]}`,
            value: (i) => C.vm[i] * 1000 + C.its[i],
          },
        ]
      : []),
    { title: "slot", right: true, kind: "mono", spare: true, cell: (i) => hexa(C.slot[i]), value: (i) => C.slot[i] },
    {
      title: "command",
      kind: "mono",
      wide: true,
      cell: (i) => commandLink(C.seq[i], C.text[i] ?? "?"),
      value: (i) => C.text[i],
    },
    {
      title: "LPI",
      right: true,
      kind: "mono",
      cell: (i) => (isKnown(C.intid[i]) ? lpiLink(C.vm[i], C.intid[i], C.time_ns[i]) : ""),
      value: (i) => C.intid[i],
    },
    { title: "verdict", kind: "verdictcell", cell: verdictBadge, value: (i) => C.verdict[i] },
  ];
  const grid = new Grid({
    label: "ITS commands",
    columns,
    rows: C.rows,
    fit: "window",
    open: (i) => change({ command: C.seq[i] }, { replace: true }),
    mark: (i) => (String(C.seq[i]) === chosen ? "chosen" : ""),
    empty: C.rows ? "no command fits" : "no ITS commands were seen",
  });
  const bar = filters(
    [
      { name: "q", label: "Search", placeholder: "MOVI 0x10, 8193, fault" },
      { name: "op", label: "Command", values: choices(Array.from(C.opcode, (name) => name ?? "?")) },
      { name: "verdict", label: "Verdict", values: choices(Array.from(C.verdict, (name) => name ?? "?")) },
    ],
    ({ q, op, verdict }) => change({ q: q || null, op: op || null, verdict: verdict || null }, { replace: true }),
  );
  const count = el("span", { class: "dim" }),
    detail = el("div", { class: "aside" });
  main.append(
    heading("Commands", count),
    bar.node,
    capped(REPORT.kept.commands, "commands", `itstrace commands ${REPORT.file}`) ?? "",
    el("div", { class: "withaside" }, grid.node, detail),
  );
  return {
    focus: bar.focus,
    update(where) {
      bar.set(where);
      const key = JSON.stringify([where.q, where.op, where.verdict]);
      if (key !== sought) {
        sought = key;
        const words = (where.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
        const text = (i) =>
          `${C.text[i]} lpi ${isKnown(C.intid[i]) ? C.intid[i] : ""} ${C.verdict[i]} ${C.fault[i] ?? ""} ${C.detail[i] ?? ""} ${C.task[i]} ${seconds(C.time_ns[i])}`.toLowerCase();
        const any = words.length || where.op || where.verdict;
        const shown = grid.filter(
          any
            ? (i) =>
                (!where.op || (C.opcode[i] ?? "?") === where.op) &&
                (!where.verdict || (C.verdict[i] ?? "?") === where.verdict) &&
                (!words.length || words.every((word) => text(i).includes(word)))
            : null,
        );
        count.textContent =
          shown === C.rows ? plural(C.rows, "command") : `${number(shown)} of ${number(C.rows)} shown`;
      }
      if ((where.command ?? null) === chosen) return;
      chosen = where.command ?? null;
      const i = F.commandBySeq.get(Number(chosen));
      const close = button("close", () => change({ command: null }, { replace: true }));
      detail.replaceChildren(
        ...(chosen === null
          ? []
          : i === undefined
            ? [
                el("p", { class: "empty" }, "The report does not hold this command. "),
                shell(`itstrace commands ${REPORT.file}`),
              ]
            : [commandCard(i, { closable: close })]),
      );
      if (i !== undefined) grid.go(i);
      else grid.draw(true);
    },
  };
}
