// What was observed, what was not, and how to record it next time.
function viewCoverage(main) {
  const { observations, skipped_rules: skipped } = REPORT.coverage;
  const rows = Object.entries(observations).map(([name, seen]) => ({ name, ...seen }));
  const state = (row) =>
    row.rows === null
      ? badge("warning", "not recorded")
      : row.whole
        ? el("span", { class: "ok" }, "observed")
        : badge("note", "in part");
  const lost = REPORT.capture.lost;
  main.append(
    heading(
      "Coverage",
      el("span", { class: "dim" }, `${rows.filter((row) => row.rows !== null).length} of ${rows.length} observations`),
    ),
    el(
      "div",
      { class: "columns" },
      el(
        "section",
        { class: "card" },
        el("h2", {}, "What was observed"),
        small({
          label: "observations",
          rows,
          columns: [
            { title: "observation", kind: "mono", cell: (row) => row.name },
            { title: "", cell: state },
            { title: "rows", right: true, kind: "mono", cell: (row) => (row.rows === null ? "" : number(row.rows)) },
            { title: "from", kind: "mono", wide: true, cell: (row) => row.events.join(", ") },
          ],
        }),
      ),
      el(
        "div",
        {},
        el(
          "section",
          { class: "card" },
          el("h2", {}, "What was not, and how to record it"),
          REPORT.missing.length
            ? REPORT.missing.map(missingCard)
            : el("p", {}, "Everything that a rule needs was recorded."),
          REPORT.missing.some((one) => one.record.length)
            ? el("p", { class: "dim" }, "docs/recording.md of itstrace has the whole set of probes.")
            : null,
        ),
        el(
          "section",
          { class: "card" },
          el("h2", {}, "Rules that could not run"),
          small({
            label: "rules that could not run",
            rows: skipped,
            none: "all rules ran",
            columns: [
              { title: "rule", kind: "mono", cell: (row) => row.code },
              { title: "name", kind: "name", cell: (row) => row.name },
              { title: "misses", kind: "mono", wide: true, cell: (row) => row.missing.join(", ") },
            ],
          }),
        ),
        el(
          "section",
          { class: "card" },
          el("h2", {}, "Lost records"),
          small({
            label: "lost records",
            rows: lost,
            none: "none that the capture tells of",
            columns: [
              { title: "CPU", right: true, kind: "mono", cell: (row) => String(row.cpu) },
              { title: "from", right: true, kind: "mono", cell: (row) => timeLink(row.from_ns, 9, "timeline") },
              { title: "to", right: true, kind: "mono", cell: (row) => timeLink(row.to_ns, 9, "timeline") },
              { title: "records", right: true, kind: "mono", cell: (row) => number(row.records) },
            ],
          }),
        ),
        REPORT.capture.damage.length
          ? el(
              "section",
              { class: "card" },
              el("h2", {}, "Damage"),
              el(
                "ul",
                {},
                REPORT.capture.damage.map((one) =>
                  el(
                    "li",
                    {},
                    `${one.problem}${isKnown(one.offset_bytes) ? ` at byte ${number(one.offset_bytes)}` : ""}`,
                  ),
                ),
              ),
            )
          : null,
        el(
          "section",
          { class: "card" },
          el("h2", {}, "What this page keeps"),
          small({
            label: "rows kept",
            rows: Object.entries(REPORT.kept).map(([name, [kept, total]]) => ({ name, kept, total })),
            columns: [
              { title: "frame", kind: "mono", cell: (row) => row.name },
              { title: "kept", right: true, kind: "mono", cell: (row) => number(row.kept) },
              { title: "of", right: true, kind: "mono", cell: (row) => number(row.total) },
            ],
          }),
          REPORT.single.whole
            ? null
            : el(
                "p",
                { class: "dim" },
                `Single events are kept in ${plural(REPORT.single.from_ns.length, "stretch", "stretches")} around what findings rest on, and at some moments between.`,
              ),
          el("p", {}, "The rest is one command away:"),
          shell(`itstrace analyze ${REPORT.file}`),
          shell(`itstrace info ${REPORT.file}`),
        ),
      ),
    ),
  );
}

// One observation that the capture lacks: what it would tell, which probes give it, and the commands that record them.
function missingCard(one) {
  const { defined, record, offsets } = one.recipe;
  return el(
    "div",
    { class: "missing" },
    el("h3", {}, el("span", { class: "mono" }, one.observation), el("span", { class: "dim" }, ` ${one.what}`)),
    one.stops.length ? el("p", {}, `Without it could not run: ${listed(one.stops)}.`) : null,
    one.record.length
      ? el(
          "p",
          {},
          "Record ",
          one.record.map((probe, at) => [
            at ? ", " : "",
            el("code", {}, probe.event),
            el("span", { class: "dim" }, ` (${probe.function})`),
          ]),
          defined.length ? ". As root on the host:" : record ? ":" : ".",
        )
      : el("p", { class: "dim" }, `No log of ${REPORT.host} tells it.`),
    defined.map(shell),
    record ? shell(record) : null,
    offsets.map((words) => el("p", { class: "dim" }, `${words}.`)),
  );
}
