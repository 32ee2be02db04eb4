// A moment, and where it leads: the time itself to the tables as they were then, small signs beside it to the timeline
// and, where it is one LPI's, into that LPI's life.
const SIGNS = {
  timeline: "M1 2.5h6M4 6h7M1 9.5h4M7 9.5h4",
  life: "M1 6h2.6l1.6-4 2 8 1.4-4H11",
};

function signLink(sign, target, words) {
  return el(
    "a",
    { class: "sign", href: href(target), "aria-label": words, title: words },
    svg("svg", { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("path", { d: SIGNS[sign] })),
  );
}

// `lpi`: [vm, intid], or null; `room`: whether the life's place is kept free, so that times stand one under the other.
function moment(offset, { lpi = null, room = false } = {}) {
  if (!isKnown(offset)) return "?";
  const exact = seconds(offset);
  const whose = lpi !== null && isKnown(lpi[0]) && isKnown(lpi[1]) ? lpi : null;
  return el(
    "span",
    { class: "moment-links" },
    timeLink(offset),
    signLink("timeline", { view: "timeline", t: exact }, `${exact} s in the timeline`),
    whose
      ? signLink("life", { lpi: `${whose[0]}:${whose[1]}`, t: exact }, `${exact} s in the life of LPI ${whose[1]}`)
      : room
        ? el("span", { class: "sign", "aria-hidden": "true" }, svg("svg", { width: 12, height: 12 }))
        : null,
  );
}

// What is said of a time in an address that names none.
const noTime = (text) =>
  `\u201c${text}\u201d is no time within the capture, which goes from ${seconds(0)} to ${seconds(SPAN)}.`;

// The copy of an address of this page.
function linkButton(target, what) {
  return copyButton("copy link", () => new URL(href(target), location.href).href, `copy the link to ${what}`);
}
