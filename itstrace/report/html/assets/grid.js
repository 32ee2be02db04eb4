// A table of any length: only the rows in view are in the page. Sorted by a click on a title, filtered by a function.
//
// columns: {title, right, cell(i) -> content, value(i) -> what to sort by, wide}; `open(i)`: Enter or a click on a row.
// `spare`: a column that goes where room is short.
const ROW = 29;
const SPARE = 12;

class Grid {
  constructor({ label, columns, rows, order, open, mark, rowTitle, fit = 0, sort = null, empty = "nothing" }) {
    Object.assign(this, { columns, open, mark, rowTitle, empty });
    this.all = order ?? Array.from({ length: rows }, (_, i) => i);
    this.shown = this.all;
    this.sorted = sort;
    this.active = -1;
    this.heads = columns.map((column, at) =>
      el(
        "th",
        {
          scope: "col",
          class: `${column.right ? "right" : ""} ${column.wide ? "wide" : ""} ${column.spare ? "spare" : ""}`,
        },
        column.value ? button(column.title, () => this.sortBy(at), { class: "sort" }) : el("span", {}, column.title),
      ),
    );
    this.body = el("tbody");
    this.table = el(
      "table",
      { class: "grid", "aria-rowcount": String(this.all.length + 1) },
      el("caption", { class: "away" }, label),
      el("thead", {}, el("tr", {}, this.heads)),
      this.body,
    );
    this.scroller = el(
      "div",
      {
        class: "scroller",
        tabindex: "0",
        role: "region",
        "aria-label": label,
        onscroll: () => this.draw(),
        onkeydown: (event) => this.key(event),
      },
      this.table,
    );
    // Its own number of rows, or as many as the window has room for.
    if (fit === "window") this.scroller.classList.add("fills");
    else if (fit) this.scroller.style.setProperty("max-height", `${(fit + 1) * ROW + 14}px`);
    this.node = el("div", { class: "gridbox" }, this.scroller);
    new ResizeObserver(() => this.draw(true)).observe(this.scroller);
    this.arrange();
  }

  filter(keep) {
    this.keep = keep;
    this.arrange();
    this.scroller.scrollTop = 0;
    return this.shown.length;
  }

  sortBy(at) {
    const [now, down] = this.sorted ?? [];
    this.sorted = now === at ? [at, !down] : [at, Boolean(this.columns[at].right)];
    this.arrange();
    announce(`sorted by ${this.columns[at].title}, ${this.sorted[1] ? "largest" : "smallest"} first`);
  }

  arrange() {
    let rows = this.keep ? this.all.filter(this.keep) : this.all;
    if (this.sorted) {
      const [at, down] = this.sorted;
      const value = this.columns[at].value;
      const keyed = rows.map((i) => [value(i), i]);
      const unknown = (each) => !isKnown(each);
      keyed.sort(
        ([a, i], [b, j]) => unknown(a) - unknown(b) || (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1) || i - j,
      );
      rows = keyed.map(([, i]) => i);
    }
    this.shown = rows;
    this.heads.forEach((head, at) => {
      const [sorted, down] = this.sorted ?? [];
      head.setAttribute("aria-sort", at === sorted ? (down ? "descending" : "ascending") : "none");
    });
    this.active = Math.min(this.active, rows.length - 1); // -1: none
    this.draw(true);
  }

  draw(anew = false) {
    const height = this.scroller.clientHeight || 600;
    const from = Math.max(Math.floor(this.scroller.scrollTop / ROW) - SPARE, 0);
    const to = Math.min(from + Math.ceil(height / ROW) + 2 * SPARE, this.shown.length);
    if (!anew && this.drawn?.[0] === from && this.drawn?.[1] === to) return;
    this.drawn = [from, to];
    const rows = [];
    if (from > 0)
      rows.push(
        el(
          "tr",
          { class: "space", "aria-hidden": "true" },
          el("td", { colspan: this.columns.length, css: { height: `${from * ROW}px` } }),
        ),
      );
    for (let at = from; at < to; at++) rows.push(this.row(at));
    if (to < this.shown.length)
      rows.push(
        el(
          "tr",
          { class: "space", "aria-hidden": "true" },
          el("td", { colspan: this.columns.length, css: { height: `${(this.shown.length - to) * ROW}px` } }),
        ),
      );
    if (!this.shown.length)
      rows.push(el("tr", {}, el("td", { colspan: this.columns.length, class: "none" }, this.empty)));
    this.body.replaceChildren(...rows);
  }

  row(at) {
    const i = this.shown[at];
    const marks = this.mark?.(i) ?? "",
      chosen = /\bchosen\b/.test(marks);
    const row = el(
      "tr",
      {
        "aria-current": chosen ? "true" : null,
        class: `${marks} ${at === this.active ? "active" : ""} ${this.open ? "opens" : ""}`,
        "aria-rowindex": String(at + 2),
        onclick:
          this.open &&
          ((event) => {
            if (event.target.closest("a, button") || getSelection().toString()) return;
            this.active = at;
            this.open(i);
            this.draw(true);
          }),
      },
      this.columns.map((column) =>
        el(
          "td",
          {
            class: `${column.right ? "right" : ""} ${column.wide ? "wide" : ""} ${column.spare ? "spare" : ""} ${column.kind ?? ""}`,
          },
          column.cell(i),
        ),
      ),
    );
    // Signs are stops of the tab key where they show: in the row that one is at.
    if (!chosen && at !== this.active) for (const sign of row.querySelectorAll("a.sign")) sign.tabIndex = -1;
    return row;
  }

  key(event) {
    const page = Math.max(Math.floor(this.scroller.clientHeight / ROW) - 2, 1);
    const steps = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -this.shown.length,
      End: this.shown.length,
    };
    if (event.target !== this.scroller) return;
    if (event.key in steps) {
      event.preventDefault();
      if (!this.shown.length) return;
      this.active = Math.max(0, Math.min(this.shown.length - 1, this.active + steps[event.key]));
      this.reveal(this.active);
    } else if (event.key === "Enter" && this.active in this.shown && this.open) {
      event.preventDefault();
      this.open(this.shown[this.active]);
    }
  }

  reveal(at) {
    const top = at * ROW,
      height = this.scroller.clientHeight - ROW;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + ROW > this.scroller.scrollTop + height) this.scroller.scrollTop = top + ROW - height;
    this.draw(true);
  }

  // Make a row, by what it shows, the active one, in the middle of the view.
  go(i) {
    const at = this.shown.indexOf(i);
    if (at < 0) return;
    this.active = at;
    this.scroller.scrollTop = Math.max(at * ROW - this.scroller.clientHeight / 2, 0);
    this.draw(true);
  }
}

// A table that is short enough to stand in the page whole.
function small({ label, columns, rows, mark, none = "none" }) {
  if (!rows.length) return el("p", { class: "none" }, none);
  return el(
    "div",
    { class: "scroller plain", tabindex: "0", role: "region", "aria-label": label },
    el(
      "table",
      { class: "grid" },
      el("caption", { class: "away" }, label),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((column) =>
            el(
              "th",
              { scope: "col", class: `${column.right ? "right" : ""} ${column.wide ? "wide" : ""}` },
              column.title,
            ),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            { class: mark?.(row) ?? "" },
            columns.map((column) =>
              el(
                "td",
                { class: `${column.right ? "right" : ""} ${column.wide ? "wide" : ""} ${column.kind ?? ""}` },
                column.cell(row),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

// A search field and choices above a table. `fields`: [{name, label, values}], null values: free text.
function filters(fields, onchange) {
  const nodes = {};
  const tell = () =>
    onchange(Object.fromEntries(Object.entries(nodes).map(([name, node]) => [name, node.value.trim()])));
  const node = el(
    "form",
    { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    fields
      .filter((field) => !field.values || field.values.length)
      .map((field) => {
        nodes[field.name] = field.values
          ? el(
              "select",
              { onchange: tell },
              el("option", { value: "" }, "all"),
              field.values.map(([value, text]) => el("option", { value }, text)),
            )
          : el("input", {
              type: "search",
              placeholder: field.placeholder,
              size: String(Math.max(18, field.placeholder.length + 2)),
              oninput: tell,
              spellcheck: "false",
              autocomplete: "off",
            });
        return el("label", {}, el("span", {}, field.label), nodes[field.name]);
      }),
  );
  return {
    node,
    set(values) {
      for (const [name, each] of Object.entries(nodes)) {
        if (document.activeElement === each) continue;
        const value = values[name] ?? "";
        // A link may ask for what does not occur: it is shown, as what hides the rows.
        if (each.options && ![...each.options].some((option) => option.value === value))
          each.append(el("option", { value }, `${value} (0)`));
        each.value = value;
      }
    },
    focus() {
      Object.values(nodes)
        .find((each) => each.type === "search")
        ?.focus();
    },
  };
}
