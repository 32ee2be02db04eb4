// The numbered records of a finding: what each says in a few words, their flags over a picture, their key below it.
const FLAG = 18;

function marksOf(finding) {
  return finding.evidence.map((item, at) => ({
    n: at + 1,
    at: item.time_ns,
    seq: item.seq,
    event: item.event,
    text: item.text,
    words: `${at + 1}: ${seconds(item.time_ns)} ${item.event} ${item.text}`,
  }));
}

// What a record says in a few words; of another LPI than the picture's with its number.
function recordWords(mark, vm, intid) {
  const told = /\bintid=(\d+)/.exec(mark.text);
  const of = told ? Number(told[1]) : intid;
  const steps = of === null ? moments(vm, mark.at, mark.at) : story(vm, of);
  const step = steps.find((each) => each.seq === mark.seq && !["table", "finding"].includes(each.kind));
  const words = step ? stepWords(step) : otherWords(mark, vm);
  return words && of !== intid && step ? `LPI ${of}: ${words}` : words;
}

function stepWords(step) {
  if (step.kind === "vcpu") return step.text.split(": ")[0];
  const text = step.text.replace(/list register ?/, "LR").replace("configuration", "config");
  return text.replace(/: empty: .*/, ": empty, taken").replace(/: still pending: .*/, ": still pending");
}

// Of what is no step of an LPI: a command, or a vCPU that enters or leaves the guest.
function otherWords(mark, vm) {
  const command = F.commandBySeq.get(mark.seq),
    msi = F.msis.seq.indexOf(mark.seq);
  if (command !== undefined) return F.commands.text[command] ?? "command";
  if (msi >= 0) return `MSI from device ${hexa(F.msis.device_id[msi])}, event ${known(F.msis.event_id[msi])}`;
  const U = F.runs;
  for (const [edge, words] of [
    ["enter_ns", "enters"],
    ["exit_ns", "leaves"],
  ])
    for (let i = 0; i < U.rows; i++)
      if (U.vm[i] === vm && U[edge][i] === mark.at && U.enter_ns[i] !== U.exit_ns[i])
        return `vCPU ${U.vcpu[i]} ${words} the guest`;
  return "";
}

// Numbers as ranges: 1, 3-5.
function rangesOf(numbers) {
  const found = [];
  for (const n of [...numbers].sort((a, b) => a - b)) {
    if (found.length && found.at(-1)[1] === n - 1) found.at(-1)[1] = n;
    else found.push([n, n]);
  }
  return found.map(([a, b]) => (a === b ? String(a) : `${a}\u2013${b}`)).join(", ");
}

// Flags side by side, each with a line to its place; what lies outside the stretch stands at its edge.
function flagsOf({ marks, scale, width, top, bottom, chosen, onmark }) {
  const before = marks.filter((each) => each.at < scale.from),
    after = marks.filter((each) => each.at > scale.to);
  const chips = [
    before.length && chip(before, scale.from - Math.max(...before.map((each) => each.at)), true),
    after.length && chip(after, Math.min(...after.map((each) => each.at)) - scale.to, false),
  ].map((each) => each || null);
  const left = scale.left + (chips[0] ? chips[0].wide + 4 : 0),
    right = width - 14 - (chips[1] ? chips[1].wide + 4 : 0);
  const lines = [],
    flags = [];
  for (const { mark, place, flag } of besideOneAnother(marks, scale, left, right)) {
    lines.push(svg("path", { d: `M${flag} 19L${place} ${top}V${bottom}`, class: "flagline" }));
    flags.push(
      pressable(
        {
          class: `flag ${chosen === mark.n ? "chosen" : ""} ${mark.isElsewhere ? "elsewhere" : ""}`,
          "data-n": mark.n,
          "aria-label": mark.words,
        },
        () => onmark(mark.n),
        svg("title", {}, mark.words),
        svg("circle", { cx: flag, cy: 11, r: 8 }),
        svg("text", { x: flag, y: 14.8, "text-anchor": "middle" }, String(mark.n)),
      ),
    );
  }
  chips.forEach((each, at) => {
    if (!each) return;
    const x = at ? width - 8 - each.wide : scale.left - 4;
    const first = each.marks[at ? 0 : each.marks.length - 1];
    flags.push(
      pressable(
        {
          class: "flag edge",
          "data-edge": at,
          "aria-label": `outside: ${each.marks.map((one) => one.words).join("; ")}`,
        },
        () => onmark(first.n),
        svg("title", {}, each.marks.map((one) => one.words).join("\n")),
        svg("rect", { x, y: 3, width: each.wide, height: 16, rx: 8 }),
        svg("text", { x: x + each.wide / 2, y: 14.8, "text-anchor": "middle" }, each.text),
      ),
    );
  });
  return { lines, flags };
}

function chip(marks, far, isBefore) {
  const numbers = rangesOf(marks.map((each) => each.n));
  const text = isBefore ? `${numbers} \u2190 ${duration(far)}` : `${numbers}  ${duration(far)} \u2192`;
  return { marks: [...marks].sort((a, b) => a.at - b.at), text, wide: text.length * 6.3 + 14 };
}

function besideOneAnother(marks, scale, left, right) {
  const shown = marks
    .filter((each) => scale.from <= each.at && each.at <= scale.to)
    .map((mark) => ({ mark, place: scale.x(mark.at) }))
    .sort((a, b) => a.place - b.place || a.mark.n - b.mark.n);
  const groups = [];
  const begin = (group) => {
    const middle = group.reduce((sum, each) => sum + each.place, 0) / group.length;
    return Math.max(
      Math.min(Math.max(middle - ((group.length - 1) * FLAG) / 2, left + 5), right - (group.length - 1) * FLAG),
      left + 5,
    );
  };
  for (const each of shown) {
    groups.push([each]);
    while (
      groups.length > 1 &&
      begin(groups.at(-1)) - (begin(groups.at(-2)) + (groups.at(-2).length - 1) * FLAG) < FLAG
    )
      groups.at(-2).push(...groups.pop());
  }
  return groups.flatMap((group) => group.map((each, at) => ({ ...each, flag: begin(group) + at * FLAG })));
}

// A part of a drawing that is pressed like a button.
function pressable(props, press, ...children) {
  return svg(
    "g",
    {
      role: "button",
      tabindex: "0",
      ...props,
      onclick: press,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        press();
      },
    },
    ...children,
  );
}

// What the numbers mean, below a picture. Before the frames are there its rows have their place, and no words.
function markKey(marks, onmark) {
  const words = marks.map(() => el("span"));
  const items = marks.map((mark, at) =>
    el(
      "li",
      { "data-n": mark.n, title: mark.words },
      el(
        "button",
        { type: "button", class: "flagnumber", "aria-label": `record ${mark.n}`, onclick: () => onmark(mark.n) },
        String(mark.n),
      ),
      " ",
      words[at],
    ),
  );
  return {
    node: el("ol", { class: "markkey", "aria-label": "what the numbers mean" }, items),
    fill: ({ vm, intid, times }) =>
      marks.forEach((mark, at) => {
        words[at].replaceChildren(
          plain(recordWords(mark, vm, intid)),
          " ",
          el("span", { class: "dim mono" }, mark.event),
        );
        items[at].classList.toggle("elsewhere", !times.includes(mark.at));
      }),
    choose: (n) => items.forEach((item) => item.classList.toggle("chosen", item.dataset.n === String(n))),
  };
}
