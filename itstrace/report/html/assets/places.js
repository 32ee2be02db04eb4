// Where one had scrolled to, by entry of the browser's history: Back brings back the list as it was.
//
// Views are hidden and made anew, so the browser cannot do it. What scrolls is noted as it scrolls, under the entry that
// is current; once the view of an entry stands, what was noted is set again. Boxes are known by view and label.
const places = {
  noted: new Map(),
  entry: null,
  held: null, // what is to be set again, from the change of the entry until its view stands

  start() {
    history.scrollRestoration = "manual";
    this.arrive();
    document.addEventListener("scroll", (event) => this.note(event.target), { capture: true, passive: true });
  },

  // The address has changed: to another entry, or only within this one.
  arrive() {
    if (this.entry !== null && history.state?.entry === this.entry) return;
    this.entry = history.state?.entry ?? null;
    if (this.entry === null) {
      this.entry = `${Date.now()}-${this.noted.size}`;
      history.replaceState({ ...history.state, entry: this.entry }, "");
    }
    const before = this.noted.get(this.entry);
    this.held = before ? new Map(before) : null;
    if (!before) this.noted.set(this.entry, new Map());
  },

  note(target) {
    if (this.held) return;
    const key = this.keyOf(target);
    if (key) this.noted.get(this.entry)?.set(key, key === "page" ? scrollY : target.scrollTop);
  },

  keyOf(target) {
    if (target === document) return "page";
    const label = target.getAttribute?.("aria-label");
    const view = target.closest?.("section.view")?.id;
    return label && view ? `${view} ${label}` : null;
  },

  settle() {
    const held = this.held;
    this.held = null;
    if (!held) return;
    for (const box of document.querySelectorAll("section.view:not([hidden]) [aria-label]")) {
      const top = held.get(this.keyOf(box));
      if (top !== undefined) box.scrollTop = top;
    }
    scrollTo(0, held.get("page") ?? 0);
    this.noted.set(this.entry, held);
  },
};
