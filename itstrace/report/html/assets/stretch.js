// Which stretch of time shows a finding: the records of its worst occurrence if it says when that was and shows its
// records, else of its first.

// The VM that a finding is about; null where that is not said and there are several.
const vmOf = (finding) => finding.vm ?? (REPORT.vms.length === 1 ? REPORT.vms[0].vm : null);

// Whose path shows a finding: {vm, intid}; an intid of null is all LPIs of the VM. Null where nothing can be drawn.
function pathOf(finding) {
  const vm = vmOf(finding);
  // What is said of the capture itself, with no record to show, happened nowhere.
  if (vm === null || finding.time_ns === null || (finding.kind === "evidence" && !finding.evidence.length)) return null;
  return { vm, intid: finding.intid ?? finding.subjects.find((one) => one.intid !== null)?.intid ?? null };
}

// Scenes of a finding, the one to be shown first in front: {name, says, vm, intid, parts, times}.
function scenesOf(finding) {
  const path = pathOf(finding),
    worst = worstOf(finding, path);
  const first = sceneOf(finding, path, finding.time_ns, false);
  if (!worst) return [{ ...first, name: "the first", says: "" }];
  const bad = sceneOf(finding, { ...path, intid: worst.intid }, worst.time, true);
  if (!bad.times.some((time) => isAt(time, worst.time))) return [{ ...first, name: "the first", says: "" }];
  const same = bad.intid === first.intid && bad.times[0] <= first.times.at(-1) && bad.times.at(-1) >= first.times[0];
  const scenes = [{ ...bad, name: "the worst", says: `The worst: ${finding.worst}` }];
  if (!same) scenes.push({ ...first, name: "the first", says: "The first occurrence" });
  // One record alone explains nothing.
  return bad.times.length > 1 || same ? scenes : scenes.reverse();
}

// A time in words has microseconds.
const isAt = (time, told) => Math.abs(time - told) <= 1000;

// Where a finding says that its worst occurrence was ("LPI 8199 waited 11.1 s from 447.564776"), if a record shown
// is of that time.
function worstOf(finding, path) {
  const told = [...(finding.worst ?? "").matchAll(/\b(\d+)\.(\d{6})\b/g)].at(-1);
  if (!told || finding.count < 2) return null;
  const time = Number(BigInt(told[1] + told[2]) * 1000n - ORIGIN);
  const record = finding.evidence.find((item) => isAt(item.time_ns, time));
  if (!record) return null;
  const msi = F.msis.seq.indexOf(record.seq);
  const named = /\bLPI (\d+)/.exec(finding.worst) ?? /\bintid=(\d+)/.exec(record.text);
  const ofMsi = msi < 0 ? undefined : F.msis.intid[msi];
  return { time, intid: named ? Number(named[1]) : isKnown(ofMsi) ? ofMsi : path.intid };
}

function sceneOf(finding, path, time, isWorst) {
  const mine = isOf(finding, path);
  const records = finding.evidence
    .map((item, at) => ({ time: item.time_ns, event: item.event, at }))
    .filter(({ at }) => mine[at])
    .sort((a, b) => a.time - b.time);
  const times = records.length ? occurrence(records, path, time, isWorst) : [time];
  const room = (span) => Math.max(span * 0.06, span ? 2e5 : 2e6);
  return { ...path, times, parts: inCapture(partsOf([...new Set(times)], room)) };
}

// Which records are of the LPI, and not of another one that was hit; one that names none of them is of the same as the
// one before it.
function isOf(finding, { vm, intid }) {
  const others = finding.subjects.filter((one) => one.intid !== intid);
  if (intid === null || !others.length) return finding.evidence.map(() => true);
  const steps = new Set(story(vm, intid).map((step) => step.seq));
  const named = finding.evidence.map((item) => {
    const told = /\bintid=(\d+)/.exec(item.text);
    if (told && Number(told[1]) === intid) return true;
    if (told) return others.some((one) => one.intid === Number(told[1])) ? false : null;
    if (steps.has(item.seq)) return true;
    const event = eventOf(item.seq);
    return event && others.some((one) => one.device_id === event[0] && one.event_id === event[1]) ? false : null;
  });
  let last = named.find((each) => each !== null) ?? true;
  const found = named.map((each) => (last = each ?? last));
  return found.includes(true) ? found : found.map(() => true);
}

// The event that a command names: [DeviceID, EventID], or null.
function eventOf(seq) {
  const i = F.commandBySeq.get(seq),
    C = F.commands;
  if (i === undefined || C.dw0[i] === null || C.dw1[i] === null) return null;
  if (!EVENT_OPCODES.has(Number(C.dw0[i] & 0xffn))) return null;
  return [Number(C.dw0[i] >> 32n), Number(C.dw1[i] & 0xffffffffn)];
}

// Times of the records, sorted, that are of one occurrence: those that come soon after one another, that a stay on a
// list or in a list register joins, or that are of a kind that was not there yet.
function occurrence(records, path, time, isWorst) {
  const from = records.findIndex((each) => each.time >= time - 1000);
  let a = Math.max(from, 0),
    b = a;
  const near = (gap) => gap <= 8 * (records[b].time - records[a].time) + 2e7;
  const isNew = (record) => !records.slice(a, b + 1).some((each) => each.event === record.event);
  while (
    b + 1 < records.length &&
    (near(records[b + 1].time - records[b].time) ||
      isJoined(path, records[b].time, records[b + 1].time) ||
      isNew(records[b + 1]))
  )
    b++;
  // What stands before the first occurrence led to it.
  while (
    a > 0 &&
    (!isWorst || near(records[a].time - records[a - 1].time) || isJoined(path, records[a - 1].time, records[a].time))
  )
    a--;
  return records.slice(a, b + 1).map((each) => each.time);
}

// Whether the LPI was pending on one list, or in one list register, from one moment to the other.
function isJoined({ vm, intid }, from, to) {
  if (intid === null) return false;
  const during = (name, begin, end) =>
    rowsOf(name, vm, intid).some(
      (i) => F[name][begin][i] <= from && (isKnown(F[name][end][i]) ? F[name][end][i] : endOf(vm)) >= to,
    );
  return during("queued", "from_ns", "to_ns") || during("fills", "time_ns", "end_ns");
}

function endOf(vm) {
  return REPORT.vms.find((each) => each.vm === vm)?.end_ns ?? SPAN;
}

// Whether single events of this stretch are in the page.
function inDetail(from, to) {
  const S = REPORT.single;
  return S.whole || S.from_ns.some((begin, at) => begin <= Math.max(from, 0) && S.to_ns[at] >= Math.min(to, SPAN));
}
