// The words of a command, field by field, by the table of itstrace/gic/commands.py.
function fieldsOf(i) {
  const C = F.commands;
  const layout = REPORT.commands.fields[C.opcode[i]];
  const words = [C.dw0[i], C.dw1[i], C.dw2[i], C.dw3[i]];
  if (!layout || words.some((word) => word === null)) return [];
  const fields = Object.entries(layout).map(([name, [dw, high, low, shift, bias]]) => {
    const bits = (words[dw] >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n);
    const value = (bits << BigInt(shift)) + BigInt(bias);
    const [label, inHex] = REPORT.commands.labels[name];
    return {
      name,
      label,
      place: `DW${dw}[${high === low ? high : `${high}:${low}`}]`,
      bits: hexa(bits),
      value: inHex ? hexa(value) : String(value),
      number: value,
    };
  });
  const number = words[0] & 0xffn;
  return [{ name: "opcode", label: "opcode", place: "DW0[7:0]", bits: hexa(number), value: C.opcode[i] }, ...fields];
}

const wordText = (word) => (word === null ? "?" : `0x${word.toString(16).padStart(16, "0")}`);

function verdictWords(i) {
  const C = F.commands;
  if (C.verdict[i] === "ok" || C.verdict[i] === null) return "";
  const extra = [C.fault[i], C.detail[i]].filter(Boolean).join(", ");
  return ` [${C.verdict[i]}${extra ? `: ${extra}` : ""}]`;
}

function verdictBadge(i) {
  const C = F.commands;
  const verdict = C.verdict[i] ?? "?";
  const severity = { fault: "error", unreadable: "error", ignored: "warning", assumed: "note" }[verdict];
  const why = [C.fault[i], C.detail[i], C.lost_before[i] === 1 ? "commands before this one were lost" : null]
    .filter(Boolean)
    .join("; ");
  return severity
    ? [badge(severity, verdict), why ? el("span", { class: "why" }, ` ${why}`) : null]
    : [el("span", { class: "ok" }, verdict), why ? el("span", { class: "why" }, ` ${why}`) : null];
}

// When the event of a command meant its LPI.
const MEANT = { DISCARD: "until then", MAPTI: "from then on", MAPI: "from then on" };

// One command, whole: its words, each field with where it stands, the verdict, what it set.
function commandCard(i, { closable = null } = {}) {
  const C = F.commands;
  const fields = fieldsOf(i);
  const touched = [];
  for (const [name, title, text] of TABLES) {
    const T = F[name];
    for (let k = 0; k < T.rows; k++) {
      if (T.set_by[k] === C.seq[i]) touched.push([title, text(T, k), "set", T.vm[k], T.intid?.[k]]);
      else if (T.ended_by[k] === C.seq[i]) touched.push([title, text(T, k), "ended", T.vm[k], T.intid?.[k]]);
    }
  }
  return el(
    "article",
    { class: "card command" },
    el("div", { class: "cardhead" }, el("h2", { class: "mono" }, commandLink(C.seq[i], C.text[i] ?? "?")), closable),
    facts([
      ["verdict", verdictBadge(i)],
      ["read at", [moment(C.time_ns[i], { lpi: [C.vm[i], C.intid[i]] }), ` on CPU ${C.cpu[i]} by ${C.task[i]}`]],
      [
        "LPI",
        isKnown(C.intid[i])
          ? [
              lpiLink(C.vm[i], C.intid[i], C.time_ns[i]),
              el("span", { class: "dim" }, `, which its event meant ${MEANT[C.opcode[i]] ?? "then"}`),
            ]
          : null,
      ],
      ["queue", `VM ${C.vm[i]}, ITS ${C.its[i]}, slot ${hexa(C.slot[i])}`],
    ]),
    el(
      "div",
      { class: "words mono" },
      ["dw0", "dw1", "dw2", "dw3"].map((name) =>
        el("span", {}, el("span", { class: "dim" }, `${name} `), wordText(C[name][i])),
      ),
    ),
    small({
      label: "fields of the command",
      rows: fields,
      none: "no fields: no such command is known, or it could not be read",
      columns: [
        { title: "field", cell: (row) => row.label },
        { title: "bits", kind: "mono", cell: (row) => row.place },
        { title: "raw", right: true, kind: "mono", cell: (row) => row.bits },
        {
          title: "value",
          right: true,
          kind: "mono",
          cell: (row) =>
            row.name === "intid" || row.name === "vintid"
              ? lpiLink(C.vm[i], Number(row.number), C.time_ns[i])
              : row.value,
        },
      ],
    }),
    touched.length
      ? el(
          "div",
          { class: "touched" },
          el("h3", {}, "What it did to the tables"),
          el(
            "ul",
            {},
            touched
              .slice(0, 12)
              .map(([title, text, what]) => el("li", {}, `${what} ${title}: `, el("span", { class: "mono" }, text))),
          ),
          touched.length > 12 ? el("p", { class: "dim" }, `12 of ${number(touched.length)} shown`) : null,
        )
      : null,
  );
}

// Table entries in words.
const TABLES = [
  [
    "devices",
    "device",
    (T, k) =>
      `${hexa(T.device_id[k])}: ITT ${hexa(T.itt_gpa[k])}, ${isKnown(T.event_bits[k]) ? number(2 ** T.event_bits[k]) : "?"} event ids`,
  ],
  ["collections", "collection", (T, k) => `${T.icid[k]}: vCPU ${known(T.target_vcpu[k])}`],
  [
    "mappings",
    "event",
    (T, k) =>
      `${hexa(T.device_id[k])}/${T.event_id[k]}: LPI ${known(T.intid[k])}, collection ${isKnown(T.icid[k]) ? T.icid[k] : "none"}`,
  ],
  ["targets", "target", (T, k) => `LPI ${T.intid[k]}: vCPU ${known(T.target_vcpu[k])}`],
  [
    "configurations",
    "configuration",
    (T, k) => `LPI ${T.intid[k]}: ${ENABLED(T.enabled[k])}, priority ${priority(T.priority[k])}`,
  ],
];
function ENABLED(value) {
  return isKnown(value) ? (value ? "enabled" : "disabled") : "enabled or not is unknown";
}
