// Findings: a list that can be filtered, and the one that is chosen, whole.
const FINDING_FIELDS = ["severity", "kind", "code", "vm", "device", "for", "text"];

function choices(values, text = String) {
  const counts = new Map();
  for (const value of values)
    if (value !== null && value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([value, count]) => [String(value), `${text(value)} (${count})`]);
}

function touches(finding, { severity, kind, code, vm, device, for: intid, text }) {
  const subjects = [finding, ...finding.subjects];
  return (
    (!severity || finding.severity === severity) &&
    (!kind || finding.kind === kind) &&
    (!code || finding.code === code) &&
    (!vm || String(finding.vm) === vm) &&
    (!device || subjects.some((one) => String(one.device_id) === device)) &&
    (!intid || subjects.some((one) => String(one.intid) === intid)) &&
    (!text ||
      [finding.id, finding.name, finding.message, finding.subject, finding.mechanism]
        .join(" ")
        .toLowerCase()
        .includes(text.toLowerCase()))
  );
}

// Causes first, each followed by its consequences.
function inStories(findings) {
  const left = new Set(findings),
    byId = new Map(findings.map((each) => [each.id, each])),
    rows = [];
  const put = (finding, depth) => {
    if (!left.delete(finding)) return;
    rows.push([finding, depth]);
    for (const id of finding.leads_to) if (byId.has(id)) put(byId.get(id), Math.min(depth + 1, 3));
  };
  for (const finding of findings) if (!finding.caused_by.some((id) => byId.has(id))) put(finding, 0);
  for (const finding of findings) put(finding, 0);
  return rows;
}

function viewFindings(main) {
  const all = REPORT.findings;
  if (!all.length) {
    main.append(heading("Findings"), el("p", { class: "empty" }, REPORT.verdict.map(([text]) => text).join(" ")));
    return null;
  }
  const many = (pick) => all.flatMap((finding) => [...new Set([finding, ...finding.subjects].map(pick))]);
  const bar = filters(
    [
      { name: "text", label: "Search", placeholder: "words, LPI, code" },
      { name: "severity", label: "Severity", values: choices(all.map((each) => each.severity)) },
      {
        name: "kind",
        label: "Kind",
        values: choices(
          all.map((each) => each.kind),
          (kind) => REPORT.kinds[kind] ?? kind,
        ),
      },
      {
        name: "code",
        label: "Rule",
        values: choices(
          all.map((each) => each.code),
          (code) => `${code} ${all.find((each) => each.code === code).name}`,
        ),
      },
      { name: "vm", label: "VM", values: choices(all.map((each) => each.vm)) },
      {
        name: "device",
        label: "Device",
        values: choices(
          many((one) => one.device_id),
          hexa,
        ),
      },
      { name: "for", label: "LPI", values: choices(many((one) => one.intid)) },
    ],
    (values) =>
      change(Object.fromEntries(FINDING_FIELDS.map((name) => [name, values[name] || null])), { replace: true }),
  );
  const list = el("ol", { class: "list", "aria-label": "findings" });
  const count = el("span", { class: "dim" });
  const detail = el("div", { class: "detail", id: "finding" });
  main.append(
    heading("Findings", count),
    bar.node,
    capped(REPORT.kept.findings, "findings", `itstrace analyze ${REPORT.file}`) ?? "",
    el("div", { class: "split" }, el("nav", { class: "side", "aria-label": "findings" }, list), detail),
  );
  let shown = [],
    drawn = null;
  const step = (by) => {
    const at = shown.findIndex(([finding]) => finding.id === drawn);
    const next = shown[Math.max(0, Math.min(shown.length - 1, at + by))];
    if (next) change({ finding: next[0].id }, { replace: true });
  };
  return {
    focus: bar.focus,
    keys: { j: () => step(1), k: () => step(-1) },
    update(where) {
      bar.set(where);
      shown = inStories(all.filter((finding) => touches(finding, where)));
      count.textContent =
        shown.length === all.length ? plural(all.length, "finding") : `${shown.length} of ${all.length} shown`;
      let chosen = F.findingById ? F.findingById.get(where.finding) : all.find((each) => each.id === where.finding);
      if (!chosen || (!where.finding && !shown.some(([each]) => each === chosen))) chosen = shown[0]?.[0];
      const params = Object.fromEntries(
        FINDING_FIELDS.filter((name) => where[name]).map((name) => [name, where[name]]),
      );
      list.replaceChildren(
        ...shown.map(([finding, depth]) =>
          el(
            "li",
            { class: `depth${depth}` },
            el(
              "a",
              {
                href: href({ ...params, finding: finding.id }),
                "aria-current": finding === chosen ? "true" : null,
                class: finding.severity,
              },
              el(
                "span",
                { class: "line" },
                badge(finding.severity),
                el("span", { class: "code" }, finding.id),
                finding.count > 1 ? el("span", { class: "dim times" }, `${number(finding.count)}\u00d7`) : null,
              ),
              el("span", { class: "name" }, depth ? `\u21b3 ${finding.name}` : finding.name),
              el(
                "span",
                { class: "dim" },
                [finding.brief, finding.time_ns === null ? "" : seconds(finding.time_ns, 6)].filter(Boolean).join(", "),
              ),
            ),
          ),
        ),
      );
      if (!shown.length) list.append(el("li", { class: "none" }, "no finding fits"));
      list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
      if (chosen?.id === drawn) return;
      drawn = chosen?.id;
      detail.replaceChildren(...(chosen ? [findingCard(chosen)] : []));
      detail.scrollTop = 0;
    },
  };
}

function findingCard(finding) {
  const { drawn, evidence } = findingPath(finding);
  const links = (ids) => ids.map((id, at) => [at ? ", " : "", findingLink(id)]);
  const commands = finding.evidence
    .map((item, at) => [F.commandBySeq?.get(item.seq), at])
    .filter(([i]) => i !== undefined);
  const span =
    finding.time_ns === null
      ? null
      : [
          timeLink(finding.time_ns),
          finding.end_ns !== null && finding.end_ns !== finding.time_ns
            ? [" to ", timeLink(finding.end_ns), ` (${duration(finding.end_ns - finding.time_ns)})`]
            : null,
        ];
  return el(
    "article",
    { class: `finding ${finding.severity}`, "aria-label": `${finding.id} ${finding.name}` },
    el(
      "div",
      { class: "cardhead" },
      el("h2", {}, badge(finding.severity), " ", el("span", { class: "code" }, finding.id), " ", finding.name),
      el(
        "span",
        { class: "dim" },
        `${REPORT.kinds[finding.kind] ?? finding.kind}, ${finding.confidence} `,
        el(
          "a",
          { class: "permalink", href: href({ finding: finding.id }), title: "a link to this finding" },
          "permalink",
        ),
      ),
    ),
    el("p", { class: "message" }, finding.message),
    finding.caused_by.length || finding.leads_to.length
      ? el(
          "p",
          { class: "storyline" },
          finding.caused_by.length ? ["Follows from ", links(finding.caused_by), ". "] : null,
          finding.leads_to.length ? ["Led to ", links(finding.leads_to), "."] : null,
        )
      : null,
    facts([
      [
        "about",
        [finding.intid === null ? finding.subject : [lpiWords(finding), finding.subject.replace(/^LPI \d+/, "")]],
      ],
      ["when", span],
      ["how often", finding.count > 1 ? plural(finding.count, "time") : null],
      ["what went wrong", finding.mechanism],
      ["worst", finding.worst],
      ["the guest saw", finding.guest_saw],
      [
        "suspect",
        finding.suspect.length ? finding.suspect.map((name, at) => [at ? ", " : "", el("code", {}, name)]) : null,
      ],
      [
        "known",
        finding.known_bugs.length
          ? finding.known_bugs.map((bug) =>
              el("div", {}, bug.title, el("span", { class: "dim" }, ` (fixed: ${bug.fixed}; ${bug.source})`)),
            )
          : null,
      ],
      ["doubt", finding.doubt],
      ["record next", finding.capture_next],
    ]),
    drawn,
    finding.evidence.length
      ? [
          el(
            "h3",
            {},
            "Evidence",
            finding.evidence.length < finding.records
              ? el("span", { class: "dim" }, ` ${finding.evidence.length} of ${number(finding.records)} shown`)
              : null,
          ),
          evidence,
        ]
      : null,
    commands.length
      ? [
          el("h3", {}, commands.length === 1 ? "The command, field by field" : "The commands, field by field"),
          el(
            "div",
            { class: "cards" },
            commands.slice(0, 8).map(([i]) => commandCard(i)),
          ),
        ]
      : null,
    finding.subjects.length > 1 ? [el("h3", {}, "Everything that was hit"), subjectTable(finding)] : null,
    el("h3", {}, "What to do"),
    el("p", {}, prose(finding.advice)),
    el("h3", {}, "The same in a terminal"),
    finding.command.map(shell),
    REPORT.pages[finding.code]
      ? el(
          "details",
          {},
          el("summary", {}, `The rule ${finding.code} ${finding.name}`),
          el("div", { class: "rulepage" }, page(REPORT.pages[finding.code])),
        )
      : null,
  );
}

function lpiWords(finding) {
  return finding.vm === null
    ? `LPI ${finding.intid}`
    : el("a", { href: href({ lpi: `${finding.vm}:${finding.intid}` }) }, `LPI ${finding.intid}`);
}

// The picture of a finding and its records: what is chosen in one is shown in the other.
function findingPath(finding) {
  const path = F.fills ? pathOf(finding) : null;
  const title = el("h3");
  const shown =
    path &&
    explorer({
      vm: path.vm,
      scenes: () => scenesOf(finding),
      marks: marksOf(finding),
      onmark: (n) => choose(n, true),
      onscene: ({ intid }) => {
        title.textContent = intid === null ? "What happened around it" : `The path of LPI ${intid}`;
      },
    });
  const evidence = finding.evidence.length
    ? evidenceTable(
        finding,
        shown &&
          ((n) => {
            choose(n);
            shown.node.scrollIntoView({ block: "nearest" });
            shown.point(n);
          }),
      )
    : null;
  const choose = (n, leads = false) => {
    const rows = [...evidence.querySelectorAll("tbody tr")];
    rows.forEach((row, at) => row.classList.toggle("chosen", at + 1 === n));
    if (leads) rows[n - 1].scrollIntoView({ block: "nearest" });
  };
  return { drawn: shown && [title, shown.node], evidence };
}

function evidenceTable(finding, lead) {
  const first = finding.evidence[0].time_ns;
  const flag = (n) =>
    lead
      ? el(
          "button",
          {
            type: "button",
            class: "flagnumber",
            "aria-label": `show record ${n} in the picture`,
            onclick: () => lead(n),
          },
          String(n),
        )
      : el("span", { class: "flagnumber" }, String(n));
  return small({
    label: `evidence of ${finding.id}`,
    rows: finding.evidence.map((item, at) => ({ ...item, at })),
    columns: [
      { title: "", right: true, cell: (row) => flag(row.at + 1) },
      { title: "time", right: true, kind: "mono", cell: (row) => timeLink(row.time_ns) },
      { title: "since 1", right: true, kind: "mono", cell: (row) => (row.at ? delta(row.time_ns - first) : "") },
      { title: "cpu", right: true, kind: "mono", cell: (row) => String(row.cpu).padStart(3, "0") },
      { title: "event", kind: "mono", cell: (row) => row.event },
      {
        title: "record",
        kind: "mono",
        wide: true,
        cell: (row) => (F.commandBySeq?.has(row.seq) ? commandLink(row.seq, row.text) : row.text),
      },
    ],
  });
}

function subjectTable(finding) {
  return [
    small({
      label: `what ${finding.id} hit`,
      rows: finding.subjects,
      columns: [
        { title: "device", right: true, kind: "mono", cell: (row) => hexa(row.device_id) },
        { title: "event", right: true, kind: "mono", cell: (row) => known(row.event_id) },
        { title: "LPI", right: true, kind: "mono", cell: (row) => lpiLink(finding.vm ?? 0, row.intid) },
        { title: "vCPUs", kind: "mono", cell: (row) => row.vcpus.join(", ") },
        { title: "times", right: true, kind: "mono", cell: (row) => number(row.count) },
        { title: "first", right: true, kind: "mono", cell: (row) => timeLink(row.time_ns) },
        { title: "last", right: true, kind: "mono", cell: (row) => timeLink(row.end_ns) },
      ],
    }),
    finding.subjects.length < finding.subjects_total
      ? el("p", { class: "dim" }, `${finding.subjects.length} of ${number(finding.subjects_total)} shown`)
      : null,
  ];
}
