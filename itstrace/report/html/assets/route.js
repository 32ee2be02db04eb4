// Where one is, in the part of the address behind #: view, finding, lpi, command, t, and what each view filters by.
const VIEWS = [
  ["verdict", "Verdict"],
  ["findings", "Findings"],
  ["timeline", "Timeline"],
  ["tables", "Tables"],
  ["lpis", "LPIs"],
  ["commands", "Commands"],
  ["coverage", "Coverage"],
];
const OF = { finding: "findings", lpi: "lpis", command: "commands", t: "tables" };

function route() {
  // A time is written +0.5, and read as it is written: elsewhere + stands for a blank.
  const hash = location.hash.slice(1).replace(/(^|&)(t|from|to)=\+/g, "$1$2=%2B");
  const given = Object.fromEntries(new URLSearchParams(hash));
  const view = VIEWS.some(([name]) => name === given.view)
    ? given.view
    : (Object.keys(OF)
        .filter((key) => key in given)
        .map((key) => OF[key])[0] ?? "verdict");
  return { ...given, view };
}

function href(params) {
  const parts = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const view = parts.find(([key]) => key === "view");
  const implied = Object.keys(OF).find((key) => parts.some(([name]) => name === key));
  const kept = view && implied && OF[implied] === view[1] ? parts.filter(([key]) => key !== "view") : parts;
  // Colons are kept as they are: links are read by people.
  return `#${new URLSearchParams(kept).toString().replaceAll("%3A", ":")}`;
}

// Change some of where one is; without a new entry in the history where it is only a filter.
function go(params, { replace = false } = {}) {
  const target = href(params);
  if (target === location.hash) return;
  if (replace) {
    history.replaceState(history.state, "", target);
    dispatchEvent(new Event("hashchange"));
  } else location.hash = target;
}

// The same view with other parameters (null: without).
function change(params, options) {
  const { view, ...rest } = route();
  go({ view, ...rest, ...params }, options);
}
