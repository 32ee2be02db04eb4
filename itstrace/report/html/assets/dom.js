// Elements. Text of the capture only ever becomes a text node; what could hide or reorder it is spelled out.
function plain(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => {
    if (char === "\n") return "\\n";
    if (char === "\t") return "\\t";
    const code = char.codePointAt(0);
    return code <= 0xff ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  apply(node, props);
  append(node, children);
  return node;
}

function svg(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  apply(node, props);
  append(node, children);
  return node;
}

function apply(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : plain(value));
  }
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(plain(child)));
  }
}

function button(label, onclick, props = {}) {
  return el("button", { type: "button", onclick, ...props }, label);
}

function announce(text) {
  document.getElementById("announce").textContent = plain(text);
}

// --- the words of the trade, as links

const SEVERITIES = ["error", "warning", "note"]; // the worst first
const SHAPES = { error: "\u25c6", warning: "\u25b2", note: "\u25cf" };
function badge(severity, label = severity) {
  return el(
    "span",
    { class: `badge ${severity}` },
    el("span", { "aria-hidden": "true", class: "shape" }, SHAPES[severity] ?? ""),
    label,
  );
}

function timeLink(offset, digits = 9, view = "tables") {
  if (!isKnown(offset)) return "?";
  const exact = seconds(offset);
  return el(
    "a",
    { class: "time", href: href({ view, t: exact }), title: `${exact} s: the tables as they were then` },
    seconds(offset, digits),
  );
}

// `time`: where in its life.
function lpiLink(vm, intid, time = null) {
  if (!isKnown(intid)) return "?";
  const t = isKnown(time) ? seconds(time) : null;
  return el(
    "a",
    { class: "num", href: href({ lpi: `${vm}:${intid}`, t }), title: `the life of LPI ${intid}` },
    String(intid),
  );
}

function commandLink(seq, text) {
  return el("a", { class: "mono", href: href({ command: seq }) }, text);
}

function findingLink(id) {
  const finding = REPORT.findings.find((each) => each.id === id);
  return el(
    "a",
    { href: href({ finding: id }), title: finding ? finding.message : id },
    finding ? `${id} ${finding.name}` : id,
  );
}

// A button that copies a text; `text`: makes it when it is pressed.
function copyButton(label, text, words) {
  const copy = button(
    label,
    async () => {
      try {
        await navigator.clipboard.writeText(text());
      } catch {
        copySelected(text());
      }
      copy.textContent = "copied";
      announce("copied");
      setTimeout(() => {
        copy.textContent = label;
      }, 1500);
    },
    { class: "copy", "aria-label": words },
  );
  return copy;
}

// Where a page from a file may not write to the clipboard: by selecting.
function copySelected(text) {
  const held = el("span", { class: "away" }, text);
  document.body.append(held);
  select(held);
  document.execCommand("copy");
  held.remove();
}

// What zooms and moves a stretch of time, by buttons and by the keys of a box that has the focus.
function zoomButtons({ zoom, move, reset }) {
  return el(
    "span",
    { class: "buttons" },
    button("\u2212", () => zoom(2), { "aria-label": "zoom out" }),
    button("+", () => zoom(0.5), { "aria-label": "zoom in" }),
    button("\u2190", () => move(-0.25), { "aria-label": "earlier" }),
    button("\u2192", () => move(0.25), { "aria-label": "later" }),
    button("all", reset),
  );
}

function zoomKey(event, { zoom, move, reset }) {
  const does = {
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    ArrowLeft: () => move(-0.25),
    ArrowRight: () => move(0.25),
    0: reset,
  }[event.key];
  if (!does || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  does();
}

// A command line that can be copied.
function shell(line) {
  const copy = copyButton("copy", () => line, `copy: ${line}`);
  const code = el("code", {}, line);
  return el("div", { class: "shell" }, el("span", { "aria-hidden": "true", class: "prompt" }, "$"), code, copy);
}

function select(node) {
  const range = document.createRange();
  range.selectNodeContents(node);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

// Text with `code` in it.
function prose(text) {
  return text.split(/(`[^`]+`)/).map((part) => (/^`[^`]+`$/.test(part) ? el("code", {}, part.slice(1, -1)) : part));
}

// A rule's page: headings, paragraphs, lists and code, all of it text.
function page(text) {
  const nodes = [];
  for (const block of text.split(/\n{2,}/)) {
    const lines = block.split("\n");
    if (lines[0].startsWith("## ")) {
      nodes.push(el("h3", {}, lines.shift().slice(3)));
      if (!lines.length) continue;
    }
    if (lines.every((line) => /^( {4}|\t)/.test(line)))
      nodes.push(
        el(
          "pre",
          { class: "block", tabindex: "0" },
          lines.map((line, i) => [i ? el("br") : null, line.slice(4)]),
        ),
      );
    else if (/^[-*] /.test(lines[0])) {
      const items = [];
      for (const line of lines) {
        if (/^[-*] /.test(line)) items.push(line.slice(2));
        else items[items.length - 1] += ` ${line.trim()}`;
      }
      nodes.push(
        el(
          "ul",
          {},
          items.map((item) => el("li", {}, prose(item))),
        ),
      );
    } else nodes.push(el("p", {}, prose(lines.join(" "))));
  }
  return nodes;
}

function facts(rows) {
  return el(
    "dl",
    { class: "facts" },
    rows
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && value.length !== 0)
      .map(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]),
  );
}

// "412 of 90,112 shown", and the command that shows the rest.
function capped([kept, total], what, command) {
  if (kept >= total) return null;
  return el(
    "div",
    { class: "capped" },
    `${number(kept)} of ${number(total)} ${what} shown; all of them:`,
    shell(command),
  );
}

function heading(title, ...rest) {
  return el("div", { class: "heading" }, el("h1", { class: "title" }, title), rest);
}
