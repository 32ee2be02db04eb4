// The life of one LPI in order, in the words of itstrace/report/story.py.
const FOUND = {
  0: "empty: the guest took it and is done",
  1: "still pending: not taken",
  2: "active: the guest is at it",
  3: "active and pending again",
};
const SWITCHES = {
  flush_lpis: (vcpu) => `EnableLPIs of vCPU ${vcpu} goes to 0: what is on its list is taken off`,
  enable_lpis: (vcpu) => `EnableLPIs of vCPU ${vcpu} goes to 1`,
  save_tables: () => "KVM saves the ITS's tables",
  restore_tables: () => "KVM restores the ITS's tables",
};
// MOVI, INT, CLEAR, MAPTI, MAPI, INV, DISCARD
const EVENT_OPCODES = new Set([0x01, 0x03, 0x04, 0x0a, 0x0b, 0x0c, 0x0f]);

// Rows of a frame by VM and LPI.
const indexed = new Map();
function rowsOf(name, vm, intid) {
  if (!indexed.has(name)) {
    const T = F[name];
    const found = new Map();
    for (let i = 0; i < T.rows; i++) {
      if (!isKnown(T.intid[i])) continue;
      const key = `${T.vm[i]}:${T.intid[i]}`;
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(i);
    }
    indexed.set(name, found);
  }
  return indexed.get(name).get(`${vm}:${intid}`) ?? [];
}

// Steps of an LPI: {seq, time, cpu, kind, text, row}. Sorted by the record that each comes from.
const stories = new Map();
function story(vm, intid) {
  const key = `${vm}:${intid}`;
  if (!stories.has(key)) {
    if (stories.size > 40) stories.clear();
    stories.set(key, lifeOf(vm, intid));
  }
  return stories.get(key);
}

// A move, row i of the retargets. Not every kernel's event says to which vCPU.
function moveWords(i) {
  const R = F.retargets,
    G = F.targets;
  if (isKnown(R.vcpu[i])) return `KVM gives it to vCPU ${R.vcpu[i]}`;
  const now = rowsOf("targets", R.vm[i], R.intid[i])
    .filter((k) => !(G.from_seq[k] > R.seq[i]) && !(G.to_seq[k] <= R.seq[i]) && isKnown(G.target_vcpu[k]))
    .at(-1);
  const model = now === undefined ? "" : ` (vCPU ${G.target_vcpu[now]} by the model)`;
  return `KVM moves it; to which vCPU this kernel's event does not say${model}`;
}

function lifeOf(vm, intid) {
  const steps = [];
  const put = (seq, time, cpu, kind, text, more = {}) =>
    steps.push({ seq, time, cpu: isKnown(cpu) ? cpu : null, kind, text, ...more });
  const M = F.mappings,
    mapped = rowsOf("mappings", vm, intid);
  const live = (k, seq) =>
    seq >= (isKnown(M.from_seq[k]) ? M.from_seq[k] : 0) && (!isKnown(M.to_seq[k]) || seq <= M.to_seq[k]);
  const events = new Map();
  for (const k of mapped) {
    const key = `${M.its[k]}:${M.device_id[k]}:${M.event_id[k]}`;
    if (!events.has(key)) events.set(key, []);
    events.get(key).push(k);
  }

  const C = F.commands,
    named = new Set();
  for (const k of mapped) for (const by of ["set_by", "ended_by"]) if (isKnown(M[by][k])) named.add(M[by][k]);
  const G = F.targets;
  for (const k of rowsOf("targets", vm, intid)) if (isKnown(G.set_by[k]) && mapped.length) named.add(G.set_by[k]);
  for (let i = 0; i < C.rows; i++) {
    if (C.vm[i] !== vm) continue;
    let mine = named.has(C.seq[i]);
    if (!mine && C.dw0[i] !== null && C.dw1[i] !== null && EVENT_OPCODES.has(Number(C.dw0[i] & 0xffn))) {
      const key = `${C.its[i]}:${C.dw0[i] >> 32n}:${C.dw1[i] & 0xffffffffn}`;
      mine = (events.get(key) ?? []).some((k) => live(k, C.seq[i]));
    }
    if (mine) put(C.seq[i], C.time_ns[i], C.cpu[i], "command", (C.text[i] ?? "") + verdictWords(i), { command: i });
  }

  const changes = new Map();
  const change = (seq, time, text) => {
    if (!changes.has(seq)) changes.set(seq, { time, texts: [] });
    changes.get(seq).texts.push(text);
  };
  for (const k of mapped) {
    const name = `device ${hexa(M.device_id[k])}, event ${known(M.event_id[k])}`;
    if (isKnown(M.from_seq[k]))
      change(
        M.from_seq[k],
        M.from_ns[k],
        `${name} means this LPI, ${isKnown(M.icid[k]) ? `collection ${M.icid[k]}` : "no collection"}`,
      );
    if (isKnown(M.to_seq[k]) && !mapped.some((other) => M.from_seq[other] === M.to_seq[k] && M.its[other] === M.its[k]))
      change(M.to_seq[k], M.to_ns[k], `${name} means it no longer`);
  }
  for (const k of rowsOf("targets", vm, intid))
    if (isKnown(G.from_seq[k])) change(G.from_seq[k], G.from_ns[k], `to be queued to vCPU ${known(G.target_vcpu[k])}`);
  for (const [seq, { time, texts }] of changes) put(seq, time, null, "table", texts.join("; "));

  const K = F.configs,
    read = new Set();
  for (const i of rowsOf("configs", vm, intid)) {
    read.add(K.seq[i]);
    const failed = isKnown(K.result[i]) && K.result[i] !== 0;
    put(
      K.seq[i],
      K.time_ns[i],
      K.cpu[i],
      "config",
      failed
        ? `KVM could not read its configuration: ${K.result[i]}`
        : `KVM reads its configuration: ${ENABLED(K.enabled[i])}, priority ${priority(K.priority[i])}`,
    );
  }
  const N = F.configurations;
  for (const k of rowsOf("configurations", vm, intid))
    if (isKnown(N.from_seq[k]) && !read.has(N.from_seq[k]))
      put(N.from_seq[k], N.from_ns[k], null, "config", `${ENABLED(N.enabled[k])}, priority ${priority(N.priority[k])}`);

  const V = F.vm_events;
  for (let i = 0; i < V.rows; i++) {
    if (V.vm[i] !== vm) continue;
    if (V.what[i] in SWITCHES) put(V.seq[i], V.time_ns[i], V.cpu[i], "vcpu", SWITCHES[V.what[i]](known(V.vcpu[i])));
    else if (V.what[i] === "invlpir" && V.intid[i] === intid)
      put(
        V.seq[i],
        V.time_ns[i],
        V.cpu[i],
        "config",
        "the guest writes GICR_INVLPIR: its configuration is to be read again",
      );
  }
  const B = F.pending_bits;
  for (const i of rowsOf("pending_bits", vm, intid))
    put(
      B.seq[i],
      B.time_ns[i],
      null,
      "table",
      `KVM reads the pending table: ${B.latched[i] ? "pending" : "not pending"}`,
    );

  const S = F.msis;
  const msi = (i) => {
    const how = isKnown(S.cached[i]) ? ` through the ${S.cached[i] ? "cache" : "tables"}` : "";
    const end = S.result[i] === 0 ? "" : isKnown(S.result[i]) ? `, refused (${S.result[i]})` : ", result unknown";
    put(
      S.seq[i],
      S.time_ns[i],
      S.cpu[i],
      "msi",
      `${isKnown(S.from_command[i]) ? "INT" : "MSI"} from device ${hexa(S.device_id[i])}, event ${known(S.event_id[i])}${how}${end}`,
      { msi: i },
    );
  };
  for (const i of rowsOf("msis", vm, intid)) msi(i);
  for (let i = 0; i < S.rows; i++) {
    if (isKnown(S.intid[i]) || S.vm[i] !== vm) continue;
    if ((events.get(`${S.its[i]}:${S.device_id[i]}:${S.event_id[i]}`) ?? []).some((k) => live(k, S.seq[i]))) msi(i);
  }
  const Q = F.queueings;
  for (const i of rowsOf("queueings", vm, intid)) {
    const state = [
      Q.pending[i] === 1 && "pending",
      Q.active[i] === 1 && "active",
      Q.enabled[i] === 0 && "disabled",
    ].filter(Boolean);
    const holder = isKnown(Q.owner_vcpu[i]) ? `, on the list of vCPU ${Q.owner_vcpu[i]} already` : "";
    const why = Q.cause[i] === "inv" ? ", configuration read again" : "";
    put(
      Q.seq[i],
      Q.time_ns[i],
      Q.cpu[i],
      "queue",
      `queued for vCPU ${known(Q.target_vcpu[i])}${holder} (${state.join(", ") || "not pending"}${why})`,
    );
  }
  const L = F.fills;
  for (const i of rowsOf("fills", vm, intid)) {
    put(
      L.seq[i],
      L.time_ns[i],
      L.cpu[i],
      "fill",
      `into list register${isKnown(L.lr[i]) ? ` ${L.lr[i]}` : ""} of vCPU ${L.vcpu[i]}${L.pending[i] === 1 ? "" : " (nothing pending)"}${L.latch_kept[i] === 1 ? ", the latch stays set" : ""}`,
    );
    if (!isKnown(L.end_seq[i])) continue;
    const ended =
      { refill: "written again without having been read back", teardown: "the VM is torn down" }[L.ended_by[i]] ??
      known(L.ended_by[i]);
    put(
      L.end_seq[i],
      L.end_ns[i],
      L.cpu[i],
      "fold",
      L.ended_by[i] === "fold"
        ? `vCPU ${L.vcpu[i]} reads it back: ${FOUND[L.state[i]] ?? "state unknown"}`
        : `list register of vCPU ${L.vcpu[i]}: ${ended}`,
    );
  }
  const R = F.retargets;
  for (const i of rowsOf("retargets", vm, intid)) put(R.seq[i], R.time_ns[i], R.cpu[i], "retarget", moveWords(i));
  // Each finding where it first hit this LPI: alone, or among others. `told` are all other steps.
  const told = [...steps];
  for (const finding of REPORT.findings) {
    const mine = (finding.subjects.length ? finding.subjects : [finding]).find((one) => one.intid === intid);
    if (mine === undefined || !(finding.vm === vm || finding.vm === null) || mine.time_ns === null) continue;
    const begun = finding.evidence
      .filter((item) => item.seq !== null && item.time_ns >= finding.time_ns)
      .map((item) => item.seq);
    const place = begun.length ? Math.min(...begun) : Math.max(0, ...finding.evidence.map((item) => item.seq ?? 0));
    const seq =
      finding.intid === intid
        ? place
        : told.reduce(
            (last, step) => (step.time !== null && step.time <= mine.time_ns ? Math.max(last, step.seq) : last),
            0,
          );
    const because = finding.caused_by.length ? ` (because of ${listed(finding.caused_by)})` : "";
    put(seq, mine.time_ns, null, "finding", `${finding.id} ${finding.name}: ${finding.message}${because}`, {
      finding: finding.id,
      severity: finding.severity,
    });
  }
  const order = steps
    .map((step, at) => [step, at])
    .sort(([a, i], [b, j]) => a.seq - b.seq || i - j)
    .map(([step]) => step);
  const begin = order.findIndex((step) => step.kind !== "vcpu");
  return begin < 0 ? order : order.slice(begin);
}
