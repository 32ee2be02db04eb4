// The first screen: what was captured, what is wrong, and the worst of it told and drawn.
function viewVerdict(main) {
  const counts = REPORT.summary.by_severity;
  const style = (style) =>
    /red/.test(style)
      ? "error"
      : /yellow/.test(style)
        ? "warning"
        : /cyan/.test(style)
          ? "note"
          : /green/.test(style)
            ? "good"
            : "";
  const sentences = REPORT.verdict.map(([text, each], at) => el(at ? "p" : "h1", { class: `${style(each)}` }, text));
  const tiles = ["error", "warning", "note"].map((severity) =>
    el(
      "a",
      { class: `tile ${severity} ${counts[severity] ? "" : "zero"}`, href: href({ view: "findings", severity }) },
      el(
        "span",
        { class: "count" },
        el("span", { "aria-hidden": "true", class: "shape" }, SHAPES[severity]),
        number(counts[severity]),
      ),
      el("span", {}, counts[severity] === 1 ? severity : `${severity}s`),
    ),
  );
  const sum = REPORT.summary;
  const figures = [
    ["MSIs", sum.injections, "lpis"],
    ["delivered", sum.deliveries, "lpis"],
    ["commands", sum.commands && Object.values(sum.commands).reduce((a, b) => a + b, 0), "commands"],
  ].map(([label, value, view]) =>
    el(
      "a",
      { class: "tile plain", href: href({ view }) },
      el("span", { class: "count" }, number(value)),
      el("span", {}, label),
    ),
  );
  const told = REPORT.worst ? worstCard() : null;
  main.append(
    el(
      "section",
      { class: "verdict" },
      el("div", { class: "saying" }, sentences),
      el("div", { class: "tiles" }, tiles, figures),
      told,
      el(
        "div",
        { class: "columns" },
        el("section", { class: "card" }, el("h2", {}, "What was captured"), facts(REPORT.facts)),
        REPORT.stages.length
          ? el(
              "section",
              { class: "card" },
              el("h2", {}, "How long delivered MSIs took"),
              small({
                label: "latency by stage",
                rows: REPORT.stages,
                columns: [
                  { title: "stage", cell: (row) => row.title },
                  ...["p50", "p99", "max"].map((name) => ({
                    title: name,
                    right: true,
                    kind: "mono",
                    cell: (row) => el("span", { title: `${number(row[name])} ns` }, duration(row[name])),
                  })),
                  { title: "MSIs", right: true, kind: "mono", cell: (row) => number(row.count) },
                ],
              }),
              el(
                "p",
                {},
                el("a", { href: href({ view: "timeline", show: "latency" }) }, "Distributions by device and LPI"),
              ),
            )
          : null,
      ),
    ),
  );
}

function worstCard() {
  const finding = REPORT.findings.find((each) => each.id === REPORT.worst.id);
  if (!finding) return null;
  const path = pathOf(finding);
  const shown =
    path &&
    explorer({
      vm: path.vm,
      scenes: () => scenesOf(finding),
      marks: marksOf(finding),
      compact: true,
      keyed: true,
    });
  return el(
    "section",
    { class: `card worst ${finding.severity}` },
    el(
      "div",
      { class: "cardhead" },
      el(
        "h2",
        {},
        badge(finding.severity),
        " ",
        el("a", { href: href({ finding: finding.id }) }, `${finding.id} ${finding.name}`),
      ),
      el("span", { class: "dim" }, [finding.brief, finding.when].filter(Boolean).join(", ")),
    ),
    el("p", { class: "told" }, REPORT.worst.told.join(" ")),
    shown?.node,
    alsoWrong(),
  );
}

// The causes that come next, each a link.
function alsoWrong() {
  const { also, others } = REPORT.worst;
  const named = also.map((id) => REPORT.findings.find((each) => each.id === id)).filter(Boolean);
  if (!named.length) return null;
  return el(
    "ul",
    { class: "also", "aria-label": "what else is wrong" },
    named.map((one) =>
      el(
        "li",
        {},
        badge(one.severity),
        " ",
        findingLink(one.id),
        el("span", { class: "dim" }, ` ${[one.brief, one.when].filter(Boolean).join(", ")}`),
      ),
    ),
    others > named.length
      ? el("li", {}, el("a", { href: href({ view: "findings" }) }, `and ${number(others - named.length)} more`))
      : null,
  );
}
