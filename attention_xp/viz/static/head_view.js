// The view of all layers and heads: thumbnails to choose from, and lines between the tokens of the chosen head.
// The file begins both the program of the widget, which widget.js ends, and that of the page, which page.js ends.
// Tokens reach the document as text alone, by textContent.

const MOST_LINES = 2500; // more are a blur, and slow to draw where there is no GPU
const LEVELS = 16; // of opacity and width; the lines of a level are one path
const CELL = 28; // pixels from thumbnail to thumbnail
const PAD = 8; // pixels above the first token
const NAMED = 8; // tokens named in the text about a token
let mounted = 0;

function make(tag, options = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Two digits, which is what the codes tell.
function percent(weight) {
  const number = 100 * weight;
  return `${number >= 10 ? Math.round(number) : Number(number.toPrecision(number >= 1 ? 2 : 1))} %`;
}

const grouped = (number) => number.toLocaleString("en-GB");
class View {
  constructor(root, data, { layer, head, onSelect }) {
    Object.assign(this, { root, data, onSelect, id: `axp-${++mounted}`, chosen: null, hovered: null });
    this.sides = { query: data.queries, key: data.keys };
    this.lists = { query: this.makeList("query"), key: this.makeList("key") };
    this.canvas = make("canvas", { class: "axp-lines", "aria-hidden": "true" });
    this.scroll = make("div", { class: "axp-scroll" }, [this.lists.query, this.canvas, this.lists.key]);
    this.name = make("strong", { role: "status" });
    this.about = make("span", { class: "axp-muted" });
    this.detail = make("p", { class: "axp-detail", role: "status" });
    const titles = make("div", { class: "axp-titles", "aria-hidden": "true" }, [
      make("span", { text: "queries" }), make("span"), make("span", { text: "keys" }),
    ]);
    const status = make("p", { class: "axp-status" }, [this.name, " ", this.about]);
    root.classList.add("axp");
    root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys for its own
    root.replaceChildren(
      make("div", { class: "axp-side" }, [make("p", { class: "axp-status", text: "Layer ↓ and head →" }), this.makePicker()]),
      make("div", { class: "axp-body" }, [status, titles, this.scroll, this.detail]),
    );
    this.row = data.row;
    root.style.setProperty("--axp-row", `${this.row}px`);
    this.listen();
    this.select(layer, head);
  }

  // The thumbnails: a grid whose cells lie above one canvas. One cell is a stop of the tab key, arrows choose the others.
  makePicker() {
    const { layers, heads } = this.data;
    this.cells = [];
    this.sheet = make("canvas", { class: "axp-sheet", "aria-hidden": "true" });
    const row = (...children) => make("div", { role: "row", class: "axp-row" }, children);
    const title = (role, text, label) => make("span", { role, text, "aria-label": label });
    const each = (makeOne) => Array.from({ length: heads }, (_, h) => makeOne(h));
    const rows = [row(title("columnheader", "↓→", "layers down, heads across"), ...each((h) => title("columnheader", String(h), `head ${h}`)))];
    for (let l = 0; l < layers; l++) {
      const cells = each((h) => make("span", { role: "gridcell", tabindex: "-1", "aria-selected": "false", "aria-label": `layer ${l}, head ${h}` }));
      this.cells.push(cells);
      rows.push(row(title("rowheader", String(l), `layer ${l}`), ...cells));
    }
    this.picker = make("div", { role: "grid", "aria-label": "Layers and heads" }, rows);
    return make("div", { class: "axp-picker" }, [this.sheet, this.picker]);
  }

  makeList(side) {
    const label = side === "query" ? "Queries" : "Keys";
    const list = make("div", { role: "listbox", tabindex: "0", class: `axp-tokens axp-${side}`, "aria-label": label });
    this.sides[side].forEach((token, i) => {
      const text = make("bdi", { class: "axp-token", text: token });
      const share = make("span", { class: "axp-share" });
      list.append(make("div", { role: "option", id: `${this.id}-${side}-${i}`, "aria-selected": "false", title: token }, [text, share]));
    });
    return list;
  }

  listen() {
    this.stop = new AbortController();
    const on = (target, kinds, listener) => {
      for (const kind of kinds.split(" ")) target.addEventListener(kind, listener, { signal: this.stop.signal });
    };
    on(this.picker, "click", (event) => {
      const at = this.cellOf(event.target);
      if (at) this.select(...at, true);
    });
    on(this.picker, "keydown", (event) => this.moveInPicker(event));
    for (const side of ["query", "key"]) {
      const list = this.lists[side];
      const index = (event) => Array.prototype.indexOf.call(list.children, event.target.closest("[role=option]"));
      on(list, "pointerover pointerleave", (event) => {
        const i = event.type === "pointerover" ? index(event) : -1;
        this.hovered = i < 0 ? null : { side, i };
        this.show();
      });
      on(list, "click", (event) => {
        const i = index(event);
        if (i >= 0) this.choose(this.chosen?.side === side && this.chosen.i === i ? null : { side, i });
      });
      on(list, "keydown", (event) => this.moveInList(event, side));
    }
    on(this.scroll, "scroll", () => this.drawSoon());
    on(matchMedia("(prefers-color-scheme: dark)"), "change", () => this.drawAll());
    this.sizes = new ResizeObserver(() => this.drawSoon());
    this.sizes.observe(this.scroll);
    // Notebooks and documents change their theme by an attribute.
    this.themes = new MutationObserver(() => this.drawAll());
    for (const element of [document.documentElement, document.body]) this.themes.observe(element, { attributes: true });
  }

  destroy() {
    this.stop.abort();
    this.sizes.disconnect();
    this.themes.disconnect();
    cancelAnimationFrame(this.frame);
  }

  cellOf(target) {
    const l = this.cells.findIndex((cells) => cells.includes(target));
    return l < 0 ? null : [l, this.cells[l].indexOf(target)];
  }

  moveInPicker(event) {
    const { layers, heads } = this.data;
    const [l, h] = {
      ArrowUp: [this.layer - 1, this.head], ArrowDown: [this.layer + 1, this.head],
      ArrowLeft: [this.layer, this.head - 1], ArrowRight: [this.layer, this.head + 1],
      Home: [this.layer, 0], End: [this.layer, heads - 1],
      PageUp: [0, this.head], PageDown: [layers - 1, this.head],
    }[event.key] ?? [];
    if (l === undefined) return;
    this.keep(event);
    if (l >= 0 && l < layers && h >= 0 && h < heads) this.select(l, h, true);
  }

  // What is done here is neither scrolling nor a command of the notebook.
  keep(event) {
    event.preventDefault();
    event.stopPropagation();
  }

  moveInList(event, side) {
    const last = this.sides[side].length - 1;
    const now = this.chosen?.side === side ? this.chosen.i : -1;
    if (event.key === "Escape") return this.choose(null);
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.row) - 1);
    const i = { ArrowUp: now - 1, ArrowDown: now + 1, Home: 0, End: last, PageUp: now - page, PageDown: now + page }[event.key];
    if (i === undefined) return;
    this.keep(event);
    this.choose({ side, i: Math.min(Math.max(i, 0), last) });
    this.lists[side].children[this.chosen.i].scrollIntoView({ block: "nearest" });
  }

  select(layer, head, isByUser = false) {
    const before = this.cells[this.layer]?.[this.head];
    before?.setAttribute("aria-selected", "false");
    before?.setAttribute("tabindex", "-1");
    Object.assign(this, { layer, head, codes: this.data.codes(layer, head) });
    const cell = this.cells[layer][head];
    cell.setAttribute("aria-selected", "true");
    cell.setAttribute("tabindex", "0");
    if (isByUser) {
      cell.focus({ preventScroll: true });
      this.reveal(cell);
      this.onSelect?.(layer, head);
    }
    this.lines = this.strongest();
    this.name.textContent = `Layer ${layer}, head ${head}.`;
    this.show();
  }

  // Scroll the thumbnails, and nothing around them, until a cell is seen.
  reveal(cell) {
    const box = this.picker.parentElement;
    const near = (now, at, room) => Math.min(Math.max(now, at + CELL + PAD - room), at - CELL);
    box.scrollTop = near(box.scrollTop, cell.offsetTop, box.clientHeight);
    box.scrollLeft = near(box.scrollLeft, cell.offsetLeft, box.clientWidth);
  }

  // The places of the largest weights of the head, as many as can be told apart.
  strongest() {
    const counts = new Uint32Array(256);
    for (const code of this.codes) counts[code]++;
    const all = this.count = this.codes.length - counts[0];
    let least = 256, count = 0;
    while (least > 1 && count + counts[least - 1] <= MOST_LINES) count += counts[--least];
    const places = new Uint32Array(count);
    for (let place = 0, n = 0; n < count; place++) if (this.codes[place] >= least) places[n++] = place;
    if (count === all) this.described = `Lines: all ${grouped(count)} weights above 0.`;
    else if (count === 0) this.described = `More than ${grouped(MOST_LINES)} weights are equally large: choose a token to see its own.`;
    else this.described = `Lines: the ${grouped(count)} largest of ${grouped(all)} weights, from ${percent(this.weight(least))} up; choose a token to see all of its own.`;
    return places;
  }

  // Codes are square roots, so that small weights have more of them.
  weight(code) {
    return this.data.scale * (code / 255) ** 2;
  }

  choose(token) {
    const mark = (chosen, isChosen) => {
      const list = chosen && this.lists[chosen.side], option = list?.children[chosen.i];
      option?.setAttribute("aria-selected", String(isChosen));
      list?.setAttribute("aria-activedescendant", isChosen ? option.id : "");
    };
    mark(this.chosen, false);
    this.chosen = token;
    mark(token, true);
    this.show();
  }

  // Mark the token that is pointed at, or else the chosen one, and the weights that it has with the other side.
  show() {
    const active = this.hovered ?? this.chosen;
    const other = active && (active.side === "query" ? "key" : "query");
    this.marked?.classList.remove("axp-active");
    this.marked = active && this.lists[active.side].children[active.i];
    this.marked?.classList.add("axp-active");
    if (this.shared && this.shared !== other) this.share(this.shared, null);
    const own = active && this.codesOf(active);
    if (other) this.share(other, own);
    this.shared = other;
    this.about.textContent = active ? `Lines: ${grouped(own.filter(Boolean).length)} of ${grouped(this.count)} weights, of this ${active.side}.` : this.described;
    this.detail.textContent = active ? this.told(active, other) : "Point at a token, or choose one with the arrow keys, to see its weights alone. Escape shows all.";
    this.drawSoon();
  }

  // Write the weights beside the tokens of a side, or take them away.
  share(side, codes) {
    [...this.lists[side].children].forEach((option, i) => {
      option.style.setProperty("--axp-share", codes ? codes[i] / 255 : 0);
      option.lastChild.textContent = codes?.[i] ? percent(this.weight(codes[i])) : "";
    });
  }

  codesOf({ side, i }) {
    const Sk = this.sides.key.length;
    if (side === "query") return this.codes.subarray(i * Sk, (i + 1) * Sk);
    return Uint8Array.from(this.sides.query, (_, q) => this.codes[q * Sk + i]);
  }

  told({ side, i }, other) {
    const codes = this.codesOf({ side, i });
    const order = [...codes.keys()].filter((j) => codes[j]).sort((a, b) => codes[b] - codes[a]);
    const named = order.slice(0, NAMED).map((j) => `${j} “${this.sides[other][j]}” ${percent(this.weight(codes[j]))}`);
    const rest = order.length > NAMED ? ` and ${grouped(order.length - NAMED)} more` : "";
    const what = side === "query" ? "attends" : "is attended by";
    return `${side === "query" ? "Query" : "Key"} ${i} “${this.sides[side][i]}” ${what} ${named.length ? named.join(", ") + rest : "nothing"}.`;
  }

  drawSoon() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  drawAll() {
    this.isSheetDrawn = false;
    this.drawSoon();
  }

  // Size a canvas to so many pixels of the page, and return its cleared context.
  prepared(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return context;
  }

  // Draw what lies within the part that is scrolled to.
  draw() {
    if (!this.isSheetDrawn) {
      this.drawSheet();
      this.reveal(this.cells[this.layer][this.head]);
    }
    const width = this.canvas.clientWidth, height = this.scroll.clientHeight, top = this.scroll.scrollTop;
    const context = this.prepared(this.canvas, width, height);
    const active = this.hovered ?? this.chosen, Sk = this.sides.key.length, own = active && this.codesOf(active);
    const most = own ? Math.max(...own, 1) : 255; // the lines of a token are compared with each other
    const paths = Array.from({ length: LEVELS }, () => new Path2D());
    const y = (i) => PAD + (i + 0.5) * this.row - top;
    const add = (code, q, k) => {
      const from = y(q), to = y(k);
      if (!code || Math.max(from, to) < 0 || Math.min(from, to) > height) return;
      const path = paths[Math.floor((code / (most + 1)) * LEVELS)];
      path.moveTo(0, from);
      path.bezierCurveTo(0.45 * width, from, 0.55 * width, to, width, to);
    };
    if (!active) for (const place of this.lines) add(this.codes[place], Math.floor(place / Sk), place % Sk);
    else if (active.side === "query") own.forEach((code, k) => add(code, active.i, k));
    else own.forEach((code, q) => add(code, q, active.i));
    this.canvas.classList.toggle("axp-of-key", active?.side === "key");
    context.strokeStyle = getComputedStyle(this.canvas).color;
    paths.forEach((path, level) => {
      const size = (level + 0.5) / LEVELS;
      context.globalAlpha = 0.08 + 0.87 * size;
      context.lineWidth = 0.6 + 3 * size ** 2;
      context.stroke(path);
    });
  }

  drawSheet() {
    const { layers, heads, thumbs, thumbRows: rows, thumbColumns: columns } = this.data;
    const context = this.prepared(this.sheet, heads * CELL, layers * CELL);
    this.sheet.style.width = `${heads * CELL}px`;
    const small = make("canvas", { width: columns, height: rows }), side = CELL - 4, fit = side / Math.max(rows, columns);
    const picture = small.getContext("2d"), image = picture.createImageData(columns, rows);
    const colour = getComputedStyle(this.sheet).color.match(/\d+/g).slice(0, 3).map(Number);
    context.imageSmoothingEnabled = false;
    for (let i = 0; i < rows * columns; i++) image.data.set(colour, 4 * i);
    for (let n = 0; n < layers * heads; n++) {
      for (let i = 0; i < rows * columns; i++) image.data[4 * i + 3] = thumbs[n * rows * columns + i];
      picture.putImageData(image, 0, 0);
      context.drawImage(small, (n % heads) * CELL + 2, Math.floor(n / heads) * CELL + 2, columns * fit, rows * fit);
    }
    this.isSheetDrawn = true;
  }
}
