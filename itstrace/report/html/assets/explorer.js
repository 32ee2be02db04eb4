// A picture with buttons, keys and gestures to move and zoom it, its legend, and what its numbers mean.
const SYMBOLS = [
  ["run", "vCPU in the guest", () => svg("rect", { x: 1, y: 1, width: 20, height: 12, class: "run" })],
  [
    "unknown",
    "when it ran was not recorded",
    () => svg("rect", { x: 1, y: 1, width: 20, height: 12, class: "unknown" }),
  ],
  ["held", "LPI in a list register", () => svg("rect", { x: 1, y: 2, width: 20, height: 10, rx: 1.5, class: "held" })],
  ["queued", "pending (queued)", () => svg("rect", { x: 1, y: 5, width: 20, height: 5, class: "queued" })],
  ["msi", "MSI", () => svg("circle", { cx: 11, cy: 7, r: 3.4, class: "msi" })],
  ["msi refused", "refused MSI", () => svg("circle", { cx: 11, cy: 7, r: 3.4, class: "msi refused" })],
  ["cmd", "command", () => svg("path", { d: "M11 13v-12m-3.5 0l7 0", class: "cmd" })],
  ["move", "KVM moves it", () => svg("path", { d: "M6.5 3h9l-4.5 7z", class: "move" })],
  ["switch", "EnableLPIs written", () => svg("path", { d: "M7 3l8 8m0 -8l-8 8", class: "switch" })],
  ["gap", "records lost", () => svg("rect", { x: 1, y: 1, width: 20, height: 12, class: "gap" })],
  ["unkept", "single events not kept", () => svg("rect", { x: 1, y: 1, width: 20, height: 12, class: "unkept" })],
  ["cut", "time cut out", () => svg("path", { d: "M5 0l4 5l-4 4l4 5M13 0l4 5l-4 4l4 5", class: "break" })],
];

// Only what occurs.
function legendOf(used) {
  return SYMBOLS.filter(([name]) => used.has(name)).map(([, text, shape]) =>
    el("span", {}, svg("svg", { width: 22, height: 14, "aria-hidden": "true", class: "path" }, shape()), text),
  );
}

// Zooming in ends here, in ns.
const LEAST_SPAN = 200;

// `vm`: whose lanes; `scenes`: gives what can be shown, the first of it at once: {vm, intid, parts, name, says};
// `onmark`: told the number of a record that was chosen. `point` chooses one from outside.
function explorer({ vm, scenes, marks = [], compact = false, keyed = false, onmark, onscene }) {
  let all = [],
    scene = null,
    parts = null,
    chosen = null,
    scale = null,
    width = 0;
  const box = el("div", {
    class: "pathbox",
    tabindex: "0",
    role: "group",
    "aria-label": "timeline: + and - zoom, arrows move, 0 shows all; drag to zoom in, double-click to zoom out",
    onkeydown: (event) => zoomKey(event, steer),
    ondblclick: () => zoom(4),
  });
  const says = el("span", { class: "dim mono" }),
    sceneSays = el("span", { class: "scenesays" }),
    legend = el("div", { class: "legend" }),
    choice = el("span", { class: "buttons" });
  const list = keyed && marks.length ? markKey(marks, (n) => point(n)) : null;

  const draw = () => {
    width = box.clientWidth;
    if (!scene) return;
    const held = document.activeElement?.closest?.(".pathbox") === box ? document.activeElement.dataset.n : undefined;
    const made = picture({
      ...scene,
      parts,
      width: Math.max(width || 900, 300),
      marks,
      compact,
      chosen,
      onmark: pressed,
    });
    scale = made.scale;
    box.replaceChildren(made.node, band);
    legend.replaceChildren(...legendOf(made.used));
    if (held !== undefined) box.querySelector(`[data-n="${held}"]`)?.focus();
    const cut = scale.to - scale.from - drawnIn(parts);
    const isKept = scale.whole.every((each) => inDetail(each.from, each.to));
    says.textContent = [
      `${seconds(scale.from, 6)} to ${seconds(scale.to, 6)} s (${duration(scale.to - scale.from)}${cut > 0 ? `, ${duration(cut)} cut out` : ""})`,
      isKept ? null : "single events are kept only in parts of it",
      made.isWhole ? null : "too much to draw all of it: zoom in",
    ]
      .filter(Boolean)
      .join("; ");
  };
  const show = (wanted) => {
    parts = inCapture(wanted);
    draw();
  };
  // One part again, of some length about a moment that keeps its place.
  const around = (time, share, length) => {
    const span = Math.min(Math.max(length, LEAST_SPAN), SPAN || LEAST_SPAN);
    const from = Math.max(Math.min(time - span * share, SPAN - span), 0);
    show([[from, from + span]]);
  };
  const zoom = (factor) => {
    if (!scale) return;
    if (factor > 1 && parts.length > 1) return show([[scale.from, scale.to]]);
    const about = anchor();
    const share = Math.min(Math.max((scale.x(about) - scale.left) / (scale.right - scale.left), 0.02), 0.98);
    around(about, share, drawnIn(parts) * factor);
  };
  // What zooming is about: the record that has the focus or was chosen, else what is nearest to the middle.
  const anchor = () => {
    const middle = scale.time((scale.left + scale.right) / 2);
    const focused =
      document.activeElement?.closest?.(".pathbox") === box ? document.activeElement.dataset.n : undefined;
    const mark = marks.find((each) => each.n === Number(focused ?? chosen));
    if (mark) return mark.at;
    const near = (times) => {
      const inside = times.filter(scale.shows);
      return (inside.length ? inside : times).reduce(
        (best, time) =>
          Math.abs(scale.x(time) - scale.x(middle)) < Math.abs(scale.x(best) - scale.x(middle)) ? time : best,
        (inside.length ? inside : times)[0] ?? middle,
      );
    };
    const shown = marks.map((each) => each.at);
    return near(shown.length ? shown : momentsOfScene());
  };
  const momentsOfScene = () =>
    (scene.intid === null ? moments(scene.vm, scale.from, scale.to) : story(scene.vm, scene.intid))
      .map((step) => step.time)
      .filter(isKnown);
  const move = (share) => {
    if (!scale) return;
    const span = drawnIn(parts),
      widest = parts.reduce((best, each) => (each[1] - each[0] > best[1] - best[0] ? each : best));
    around(widest[0] + span * share, 0, span);
  };
  const reset = () => scene && show(scene.parts);
  const steer = { zoom, move, reset };
  const stage = (next) => {
    scene = next;
    for (const [at, each] of [...choice.children].entries())
      each.setAttribute("aria-pressed", String(all[at] === scene));
    sceneSays.textContent = plain(scene.says ?? "");
    onscene?.(scene);
    list?.fill(scene);
    reset();
  };

  // A record is chosen: it is brought into the picture, and whoever shows it elsewhere is told.
  const point = (n) => {
    const mark = marks.find((each) => each.n === n);
    if (!mark || !scene) return;
    chosen = n;
    list?.choose(n);
    const shows = (wanted) => wanted.some(([from, to]) => from <= mark.at && mark.at <= to);
    const other = all.find((each) => shows(each.parts));
    if (shows(parts)) draw();
    else if (other && other !== scene) stage(other);
    else if (other) reset();
    else around(mark.at, 0.5, drawnIn(parts));
    box.querySelector(`[data-n="${n}"]`)?.focus({ preventScroll: true });
  };
  const pressed = (n) => {
    point(n);
    onmark?.(n);
  };

  const band = dragged(box, {
    begins: () => scale,
    zooms: (x1, x2) => {
      const [from, to] = [scale.time(x1), scale.time(x2)];
      show(
        parts
          .map(([a, b]) => [Math.max(a, from), Math.min(b, to)])
          .filter(([a, b]) => b > a)
          .concat(parts.some(([a, b]) => b > from && a < to) ? [] : [[from, to]]),
      );
    },
  });
  new ResizeObserver(() => box.clientWidth !== width && draw()).observe(box);
  const place = sizesOf(vm, marks.length, compact);
  box.style.setProperty("min-height", `${place.height + 2}px`);
  const node = el(
    "figure",
    { class: `explorer ${compact ? "compact" : ""}` },
    box,
    el("figcaption", {}, zoomButtons(steer), choice, says, sceneSays, legend),
    list?.node,
  );
  frames().then(() => {
    all = scenes();
    if (all.length > 1) choice.append(...all.map((each) => button(each.name, () => stage(each))));
    stage(all[0]);
  });
  return { node, point };
}

// Dragging over a picture marks a stretch. Gives the node that shows it.
function dragged(box, { begins, zooms }) {
  const band = el("div", { class: "band", hidden: true });
  let start = null;
  // Pictures are drawn smaller than their own width in a window that is narrower than they can be.
  const at = (event) => {
    const drawn = box.querySelector("svg.path").getBoundingClientRect();
    return ((event.clientX - drawn.left) / drawn.width) * box.querySelector("svg.path").viewBox.baseVal.width;
  };
  const inside = (x) => Math.min(Math.max(x, begins().left), begins().right);
  box.addEventListener("pointerdown", (event) => {
    if (!begins() || event.button !== 0 || event.target.closest("[role=button], a")) return;
    start = { x: inside(at(event)), client: event.clientX };
  });
  box.addEventListener("pointermove", (event) => {
    if (!start) return;
    const wide = Math.abs(event.clientX - start.client);
    if (band.hidden && wide < 6) return;
    if (band.hidden) box.setPointerCapture(event.pointerId);
    band.hidden = false;
    const bounds = box.getBoundingClientRect();
    band.style.setProperty("left", `${Math.min(event.clientX, start.client) - bounds.left}px`);
    band.style.setProperty("width", `${wide}px`);
  });
  const end = (event) => {
    const began = start;
    start = null;
    if (!began || band.hidden) return;
    band.hidden = true;
    if (event.type !== "pointerup") return;
    const [a, b] = [began.x, inside(at(event))].sort((one, other) => one - other);
    if (b - a > 2) zooms(a, b);
  };
  box.addEventListener("pointerup", end);
  box.addEventListener("pointercancel", end);
  return band;
}
