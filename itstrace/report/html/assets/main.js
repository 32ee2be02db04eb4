// Views, keys, theme, print. A view is made when it is first shown, then told where one is.
const MAKE = {
  verdict: viewVerdict,
  findings: viewFindings,
  timeline: viewTimeline,
  tables: viewTables,
  lpis: viewLpis,
  commands: viewCommands,
  coverage: viewCoverage,
};
const NEEDS_FRAMES = new Set(["findings", "timeline", "tables", "lpis", "commands"]);
const made = new Map();
const main = document.getElementById("main");
const nav = document.getElementById("views");

// The capture in few words: of a file that is called as they all are, the folder too.
function captureName() {
  const parts = REPORT.capture.path.split("/");
  return parts.slice(/^(trace|perf|capture)(\.|$)/.test(parts.at(-1)) ? -2 : -1).join("/");
}

// Views take time to make; whoever goes elsewhere meanwhile is not called back.
async function show() {
  const { view } = route();
  for (const link of nav.children) {
    if (link.dataset.view !== view) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "page");
      // In a narrow window the sections stand in a row that scrolls.
      nav.scrollLeft = Math.max(0, link.offsetLeft - nav.offsetLeft - nav.clientWidth / 3);
    }
  }
  const left = [...made].find(([, { section }]) => !section.hidden)?.[0];
  for (const [name, { section }] of made) section.hidden = name !== view;
  if (left !== view) scrollTo(0, 0);
  if (!made.has(view)) {
    const section = el("section", { class: `view ${view}`, id: `view-${view}` });
    main.append(section);
    made.set(view, { section, making: make(view, section) });
  }
  const does = await made.get(view).making;
  const where = route();
  if (where.view !== view) return;
  made.get(view).does = does;
  document.title = `${plain(VIEWS.find(([name]) => name === view)[1])} \u00b7 ${plain(captureName())} \u00b7 itstrace`;
  await does.update?.(where);
  places.settle();
  document.documentElement.dataset.ready = location.hash || "#";
}

async function make(view, section) {
  if (NEEDS_FRAMES.has(view)) await frames();
  return (await MAKE[view](section)) ?? {};
}

function theme(next) {
  const root = document.documentElement;
  if (next) root.dataset.theme = next;
  try {
    if (next) localStorage.setItem("itstrace-theme", next);
    else if (localStorage.getItem("itstrace-theme")) root.dataset.theme = localStorage.getItem("itstrace-theme");
  } catch {
    /* a page from a file may have no storage */
  }
  dispatchEvent(new Event("themechange"));
}
const isDark = () =>
  document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

const KEYS = [
  ["1 to 7", "the sections, in order"],
  ["/", "search in this section"],
  ["j, k", "next, previous finding; change of the tables"],
  ["+, \u2212, \u2190, \u2192, 0", "zoom and move a timeline that has the focus"],
  ["\u2191, \u2193, Enter", "rows of a table, or findings of the list, that has the focus"],
  ["d", "light or dark"],
  ["?", "this help"],
];
const help = el(
  "dialog",
  { id: "help", "aria-label": "Keys" },
  el("h2", {}, "Keys"),
  el(
    "dl",
    { class: "facts" },
    KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]),
  ),
  el("p", { class: "dim" }, `itstrace ${REPORT.version}. This page makes no request: everything is in it.`),
  button("close", () => help.close()),
);

for (const [name, title] of VIEWS) nav.append(el("a", { href: href({ view: name }), "data-view": name }, title));
document.getElementById("tools").append(
  el("span", { class: "file mono", title: REPORT.capture.path }, captureName()),
  button("\u25d0", () => theme(isDark() ? "light" : "dark"), {
    "aria-label": "light or dark",
    title: "light or dark (d)",
  }),
  button("?", () => help.showModal(), { "aria-label": "keys", title: "keys (?)" }),
);
document.body.append(
  help,
  svg(
    "svg",
    { class: "away", width: 0, height: 0, "aria-hidden": "true" },
    svg(
      "defs",
      {},
      svg(
        "pattern",
        { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 6, height: 6, class: "hatchback" }),
        svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" }),
      ),
      svg(
        "pattern",
        { id: "unrecorded", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 6, height: 6, class: "unrecordedback" }),
        svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "unrecordedline" }),
      ),
    ),
  ),
);

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const { does } = made.get(route().view) ?? {};
  if (/^[1-7]$/.test(event.key)) go({ view: VIEWS[Number(event.key) - 1][0] });
  else if (event.key === "/") {
    event.preventDefault();
    does?.focus?.();
  } else if (event.key === "?") help.showModal();
  else if (event.key === "d") theme(isDark() ? "light" : "dark");
  else does?.keys?.[event.key]?.(event);
});

// On paper: the verdict, every finding whole, coverage; of a section that is a table or a plot, what it shows; and only
// the finding that the address names, if it names one. Without frames there are no pictures, so they come first.
const PRINTED = 40;
const PAPER_PX = 660;
const AS_SEEN = new Set(["timeline", "tables", "lpis", "commands"]);
async function printable() {
  await frames();
  document.getElementById("paper")?.remove();
  const { view, finding: id } = route();
  document.documentElement.toggleAttribute("data-print-as-seen", AS_SEEN.has(view));
  if (AS_SEEN.has(view)) {
    // Plots are drawn for the window: on paper they are made as small as it takes.
    const width = main.clientWidth || PAPER_PX;
    document.documentElement.style.setProperty("--printed", String(Math.min(1, PAPER_PX / width)));
    return;
  }
  const one = view === "findings" ? F.findingById.get(id) : undefined;
  document.body.append(el("div", { id: "paper" }, one ? [paperHead(), findingCard(one)] : paperWhole()));
}

function paperWhole() {
  const verdict = el("div"),
    coverage = el("div");
  viewVerdict(verdict);
  viewCoverage(coverage);
  const printed = inStories(REPORT.findings).slice(0, PRINTED);
  return [
    verdict,
    printed.length ? el("h2", {}, "Findings") : null,
    printed.map(([finding]) => findingCard(finding)),
    REPORT.findings.length > PRINTED
      ? el("p", {}, `${PRINTED} of ${number(REPORT.findings.length)} findings printed`)
      : null,
    coverage,
  ];
}

// Of what a finding that is printed alone was found in.
function paperHead() {
  const said = REPORT.facts.filter(([label]) => ["file", "kernel", "time"].includes(label));
  return el("div", {}, el("p", { class: "dim" }, `itstrace ${REPORT.version}`), facts(said));
}
addEventListener("beforeprint", printable);

// For whoever opens the console: the data of the page, and the functions that read it.
globalThis.itstrace = Object.freeze({ report: REPORT, frames, story, seconds, duration, parseTime, fieldsOf });

addEventListener("hashchange", () => {
  places.arrive();
  show();
});
places.start();
theme();
// The verdict is drawn first; then everything is unpacked, so that all else, paper included, finds it there.
show()
  .then(() => requestAnimationFrame(() => setTimeout(frames)))
  .catch((error) => {
    main.append(
      el(
        "p",
        { class: "empty" },
        "DecompressionStream" in globalThis
          ? `The report could not be drawn: ${error}`
          : "This browser is too old for this report: it cannot unpack its data. Any browser of 2023 or later can.",
      ),
    );
    throw error;
  });
