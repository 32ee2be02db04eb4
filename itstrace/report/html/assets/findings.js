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

// The worst first, rules as the analysis has them, then by number: ITS102-2 before ITS102-10.
function byWeight(one, other) {
  const place = (finding) => REPORT.findings.findIndex((each) => each.code === finding.code);
  return (
    SEVERITIES.indexOf(one.severity) - SEVERITIES.indexOf(other.severity) ||
    place(one) - place(other) ||
    one.id.localeCompare(other.id, "en", { numeric: true })
  );
}

// Causes first, each followed by its consequences: {finding, depth}.
function inStories(given) {
  const findings = [...given].sort(byWeight),
    left = new Set(findings),
    byId = new Map(findings.map((each) => [each.id, each])),
    rows = [];
  const put = (finding, depth) => {
    if (!left.delete(finding)) return;
    rows.push([finding, depth]);
    const effects = finding.leads_to.map((id) => byId.get(id)).filter(Boolean);
    for (const effect of effects.sort(byWeight)) put(effect, Math.min(depth + 1, 3));
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
  // One stop of the tab key: arrows go through it, Enter into what it shows.
  const list = el("ol", { class: "list", "aria-label": "findings", onkeydown: (event) => key(event) });
  const count = el("span", { class: "dim" });
  const notice = el("div", { role: "status" }),
    card = el("div"),
    detail = el("div", { class: "detail", id: "finding" }, notice, card);
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
    const next = Math.max(0, Math.min(shown.length - 1, at + by));
    if (!shown.length || next === at) return;
    const [finding] = shown[next];
    change({ finding: finding.id }, { replace: true });
    announce(`${next + 1} of ${shown.length}: ${finding.severity} ${finding.id} ${finding.name}`);
  };
  const key = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, Home: -shown.length, End: shown.length }[event.key];
    if (by === undefined && event.key !== "Enter") return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    if (by === undefined) detail.querySelector("article")?.focus();
    else step(by);
  };
  return {
    focus: bar.focus,
    keys: { j: () => step(1), k: () => step(-1) },
    update(where) {
      bar.set(where);
      shown = inStories(all.filter((finding) => touches(finding, where)));
      count.textContent =
        shown.length === all.length ? plural(all.length, "finding") : `${shown.length} of ${all.length} shown`;
      const chosen = where.finding ? all.find((each) => each.id === where.finding) : shown[0]?.[0];
      const inList = shown.some(([each]) => each === chosen);
      const params = Object.fromEntries(
        FINDING_FIELDS.filter((name) => where[name]).map((name) => [name, where[name]]),
      );
      const focused = list.contains(document.activeElement);
      list.replaceChildren(
        ...shown.map(([finding, depth], at) =>
          el(
            "li",
            { class: `depth${depth}` },
            el(
              "a",
              {
                href: href({ ...params, finding: finding.id }),
                "aria-current": finding === chosen ? "true" : null,
                tabindex: finding === chosen || (!inList && at === 0) ? "0" : "-1",
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
                { class: finding.brief ? "dim" : "dim clipped" },
                finding.brief
                  ? [finding.brief, finding.time_ns === null ? "" : seconds(finding.time_ns, 6)]
                      .filter(Boolean)
                      .join(", ")
                  : finding.message,
              ),
            ),
          ),
        ),
      );
      if (!shown.length) list.append(el("li", { class: "none" }, "no finding fits"));
      if (focused) list.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
      const current = list.querySelector("[aria-current]");
      if (current) revealIn(list.parentElement, current);
      notice.replaceChildren(...noticeOf(where.finding, chosen, inList, Object.keys(params).length));
      if (chosen?.id === drawn) return;
      drawn = chosen?.id;
      card.replaceChildren(...(chosen ? [findingCard(chosen)] : []));
      // Another is read from its beginning.
      if (detail.getBoundingClientRect().top < 0) detail.scrollIntoView();
    },
  };
}

// Scroll a box, and nothing but it, so that something in it can be seen.
function revealIn(box, node) {
  const a = box.getBoundingClientRect(),
    b = node.getBoundingClientRect();
  if (b.top < a.top) box.scrollTop -= a.top - b.top;
  else if (b.bottom > a.bottom) box.scrollTop += b.bottom - a.bottom;
}

// What is to be said where an address asks for a finding that is not in the list. `filtered`: by how many filters.
function noticeOf(id, chosen, inList, filtered) {
  if (!id || (chosen && inList)) return [];
  const [kept, total] = REPORT.kept.findings;
  const words = chosen
    ? `${id} is not among those shown. `
    : `The report holds no finding ${id}${kept < total ? `: it keeps ${number(kept)} of ${number(total)}` : ""}. `;
  const all =
    chosen || filtered
      ? el("a", { href: href(chosen ? { finding: id } : { view: "findings" }) }, "Show all findings")
      : null;
  return [el("p", { class: "notice" }, words, all)];
}

function findingCard(finding) {
  const { drawn, evidence } = findingPath(finding);
  const links = (ids) => ids.map((id, at) => [at ? ", " : "", findingLink(id)]);
  const lpi = finding.intid === null ? null : [vmOf(finding), finding.intid];
  const commands = finding.evidence
    .map((item, at) => [F.commandBySeq?.get(item.seq), at])
    .filter(([i]) => i !== undefined);
  const span =
    finding.time_ns === null
      ? null
      : [
          moment(finding.time_ns, { lpi }),
          finding.end_ns !== null && finding.end_ns !== finding.time_ns
            ? [" to ", moment(finding.end_ns, { lpi }), ` (${duration(finding.end_ns - finding.time_ns)})`]
            : null,
        ];
  return el(
    "article",
    { class: `finding ${finding.severity}`, tabindex: "-1", "aria-label": `${finding.id} ${finding.name}` },
    el(
      "div",
      { class: "cardhead" },
      el("h2", {}, badge(finding.severity), " ", el("span", { class: "code" }, finding.id), " ", finding.name),
      el(
        "span",
        { class: "headside" },
        el("span", { class: "dim" }, `${REPORT.kinds[finding.kind] ?? finding.kind}, ${finding.confidence}`),
        linkButton({ finding: finding.id }, finding.id),
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
        finding.intid === null ? finding.subject : [lpiWords(finding), finding.subject.replace(/^LPI \d+/, "")],
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
          ? finding.known_bugs.map((bug, at) =>
              el("div", {}, bug.title, el("span", { class: "dim" }, ` (${finding.fixes[at]}; ${bug.source})`)),
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

// The LPI of a finding, as a link into its life at the moment of the finding.
function lpiWords(finding) {
  const vm = vmOf(finding),
    t = finding.time_ns === null ? null : seconds(finding.time_ns);
  return vm === null
    ? `LPI ${finding.intid}`
    : el("a", { href: href({ lpi: `${vm}:${finding.intid}`, t }) }, `LPI ${finding.intid}`);
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
  const first = finding.evidence[0].time_ns,
    vm = vmOf(finding);
  // A record that is a command is about the LPI of its event, any other about that of the finding.
  const lpiOf = (row) => {
    const i = F.commandBySeq?.get(row.seq);
    const intid = i !== undefined && isKnown(F.commands.intid[i]) ? F.commands.intid[i] : finding.intid;
    return intid === null ? null : [vm, intid];
  };
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
      { title: "time", right: true, kind: "mono", cell: (row) => moment(row.time_ns, { lpi: lpiOf(row), room: true }) },
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
  const subjectLpi = (row) => (row.intid === null ? null : [vmOf(finding), row.intid]);
  return [
    small({
      label: `what ${finding.id} hit`,
      rows: finding.subjects,
      columns: [
        { title: "device", right: true, kind: "mono", cell: (row) => hexa(row.device_id) },
        { title: "event", right: true, kind: "mono", cell: (row) => known(row.event_id) },
        { title: "LPI", right: true, kind: "mono", cell: (row) => lpiLink(vmOf(finding) ?? 0, row.intid, row.time_ns) },
        { title: "vCPUs", kind: "mono", cell: (row) => row.vcpus.join(", ") },
        { title: "times", right: true, kind: "mono", cell: (row) => number(row.count) },
        {
          title: "first",
          right: true,
          kind: "mono",
          cell: (row) => moment(row.time_ns, { lpi: subjectLpi(row), room: true }),
        },
        {
          title: "last",
          right: true,
          kind: "mono",
          cell: (row) => moment(row.end_ns, { lpi: subjectLpi(row), room: true }),
        },
      ],
    }),
    finding.subjects.length < finding.subjects_total
      ? el("p", { class: "dim" }, `${finding.subjects.length} of ${number(finding.subjects_total)} shown`)
      : null,
  ];
}
