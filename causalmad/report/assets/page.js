"use strict";
// Everything from the data goes into the page as text (textContent, attributes), never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.ids.length, PAGE = 12, SVG = "http://www.w3.org/2000/svg";
  const score = data.score.map(Number), p = data.p.map(Number);
  const labels = data.label.length > 0, adjusted = data.adjusted.length > 0;
  const place = new Map((data.rows || data.ids.map((_, i) => i)).map((row, i) => [row, i]));
  const byId = (name) => document.getElementById(name);

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children); // strings become text nodes
    return node;
  }
  function draw(tag, attributes = {}, text = null) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== null) node.textContent = text;
    return node;
  }
  function number(value, digits = 4) {
    const x = Number(value);
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "none" : x > 0 ? "∞" : "−∞";
    const rounded = Number(x.toPrecision(digits));
    const text = rounded !== 0 && Math.abs(rounded) < 1e-4 ? rounded.toExponential() : String(rounded);
    return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
  }
  const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
  // Half of a surrogate pair, which a broken file may hold, has no place in an address.
  const anchor = (id) => `#${encodeURIComponent(id.replace(/[\ud800-\udfff]/gu, "\ufffd"))}`;
  const isFlag = (row) => data.flag[row] === "1";
  const label = (row) => (data.label[row] === "1" ? "anomalous" : "normal");
  const leading = (row) => (place.has(row) ? data.columns[data.leading[place.get(row)]] : "");
  function tokens(row) {
    return data.tokens.length ? data.tokens[row].map((i) => data.vocabulary[i]) : [];
  }

  // The table: all inputs are sorted and filtered as numbers, one page of them is in the document.
  const columns = [
    { name: "id", title: "Input", key: (row) => data.ids[row], cell: (row) => data.ids[row], first: 1 },
    { name: "score", title: "Score", key: (row) => score[row], cell: (row) => number(score[row]), kind: "number" },
    { name: "p", title: "p", key: (row) => p[row], cell: (row) => number(p[row], 3), kind: "number", first: 1 },
    { name: "flag", title: "Flag", key: (row) => Number(data.flag[row]), cell: flagBadge, kind: "flags" },
  ];
  if (labels) columns.push({ name: "label", title: "Label", key: (row) => data.label[row], cell: label, kind: "labels" });
  columns.push({ name: "lead", title: "Leading column", key: leading, cell: (row) => leading(row) || "–", kind: "leading", first: 1 });
  let sortBy = columns[1], direction = -1, shown = [], page = 0, active = -1, current = -1;
  const collator = new Intl.Collator("en", { numeric: true });

  function flagBadge(row) {
    return isFlag(row) ? make("span", { class: "badge hit" }, "flagged") : "–";
  }
  function compare(a, b) {
    const x = sortBy.key(a), y = sortBy.key(b);
    const order = typeof x === "number" ? (x < y ? -1 : x > y ? 1 : 0) : collator.compare(x, y);
    return direction * order || score[b] - score[a] || a - b;
  }
  let haystacks = null;
  const plain = (text) => text.toLowerCase().replace(/\s+/g, " ");
  function select() {
    const wanted = plain(byId("find").value).trim(), only = byId("flagged").checked;
    if (wanted && !haystacks) {
      haystacks = data.ids.map((id, row) =>
        [id, leading(row), labels ? label(row) : "", tokens(row).join(" ")].map(plain).join("\n"));
    }
    shown = [];
    for (let row = 0; row < count; row++) {
      if ((!only || isFlag(row)) && (!wanted || haystacks[row].includes(wanted))) shown.push(row);
    }
    shown.sort(compare);
    page = 0;
    active = 0;
    show();
  }
  function show() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    const rows = shown.slice(page * PAGE, (page + 1) * PAGE);
    byId("rows").replaceChildren(...rows.map((row, i) => {
      const line = make("tr", { "data-row": row, tabindex: i === active ? 0 : -1 });
      if (row === current) line.setAttribute("aria-current", "true");
      line.append(...columns.map((column) => make("td", { class: column.kind || "" }, column.cell(row))));
      return line;
    }));
    columns.forEach((column, i) => {
      const order = column === sortBy ? (direction > 0 ? "ascending" : "descending") : "none";
      heads[i].setAttribute("aria-sort", order);
    });
    byId("count").textContent = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} shown`;
    byId("none").hidden = shown.length > 0;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("before").disabled = page === 0;
    byId("after").disabled = page >= pages - 1;
  }
  const heads = columns.map((column) => {
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      direction = column === sortBy ? -direction : column.first || -1;
      sortBy = column;
      select();
      button.focus();
    });
    const kind = column.name === "lead" ? "lead-head" : column.kind || "";
    return make("th", { scope: "col", class: kind, "data-column": column.name }, button);
  });
  byId("heads").append(...heads);
  function turn(step) {
    page += step;
    active = 0;
    show();
    // A button that has just been disabled would lose the focus.
    if (byId("after").disabled && step > 0) byId("before").focus();
    if (byId("before").disabled && step < 0) byId("after").focus();
  }
  byId("before").addEventListener("click", () => turn(-1));
  byId("after").addEventListener("click", () => turn(1));
  byId("find").addEventListener("input", select);
  byId("flagged").addEventListener("change", select);

  function focusRow(place) {
    const target = Math.min(Math.max(place, 0), shown.length - 1);
    if (target < 0) return;
    if (Math.floor(target / PAGE) !== page) {
      page = Math.floor(target / PAGE);
      active = target % PAGE;
      show();
    }
    const lines = byId("rows").children;
    if (lines[active]) lines[active].tabIndex = -1;
    active = target % PAGE;
    lines[active].tabIndex = 0;
    lines[active].focus();
  }
  byId("rows").addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (line) open(Number(line.dataset.row), true);
  });
  byId("rows").addEventListener("keydown", (event) => {
    const line = event.target.closest("tr");
    if (!line || event.altKey || event.ctrlKey || event.metaKey) return;
    const here = page * PAGE + [...byId("rows").children].indexOf(line);
    const moves = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + PAGE, PageUp: here - PAGE, Home: 0, End: shown.length - 1 };
    if (event.key === "Enter" || event.key === " ") open(Number(line.dataset.row), true);
    else if (event.key in moves) focusRow(moves[event.key]);
    else return;
    event.preventDefault();
  });

  // The explanation of one input.
  function open(row, asked) {
    current = row;
    active = Math.max(shown.slice(page * PAGE, (page + 1) * PAGE).indexOf(row), 0);
    for (const [i, line] of [...byId("rows").children].entries()) {
      line.tabIndex = i === active ? 0 : -1;
      if (Number(line.dataset.row) === row) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
    byId("why-title").textContent = `Input ${data.ids[row]}`;
    byId("explanation").replaceChildren(...summary(row));
    markGraph(row);
    byId("further").replaceChildren(...(place.has(row) ? further(row, place.get(row)) : []));
    if (!asked) return;
    try {
      history.replaceState(null, "", anchor(data.ids[row]));
    } catch {
      // A frame without an address of its own has none to change.
    }
    // Where both stand beside each other, the focus stays in the table, so that the next arrow key goes on there.
    if (matchMedia("(max-width: 980px)").matches) {
      byId("why-title").focus({ preventScroll: true });
      byId("why").scrollIntoView();
    }
  }
  function summary(row) {
    const rank = 1 + score.reduce((n, x) => n + (x > score[row]), 0);
    const facts = [["score", number(score[row])], ["p", number(p[row], 3)]];
    if (adjusted) facts.push(["adjusted p", number(data.adjusted[row], 3)]);
    facts.push(["rank by score", `${rank.toLocaleString("en")} of ${count.toLocaleString("en")}`]);
    const badges = make("div", { class: "badges" },
      make("span", { class: isFlag(row) ? "badge hit" : "badge" }, isFlag(row) ? `flagged at ${data.level}` : "not flagged"));
    if (labels) badges.append(make("span", { class: "badge" }, `label: ${label(row)}`));
    const found = [badges, make("p", { class: "facts" }, ...facts.map(([name, value]) => make("span", {}, `${name} `, make("b", {}, value))))];
    if (row in data.remarks) found.push(make("p", { class: "warn" }, data.remarks[row]));
    if (!place.has(row)) found.push(make("p", { class: "warn" }, "The reasons of this input are not in the report."));
    if (data.tokens.length) found.push(tokenStrip(row));
    if (place.has(row)) found.push(contributions(row, place.get(row)));
    return found;
  }
  function part(title, note, ...children) {
    const block = make("div", { class: "part" }, make("h3", {}, title));
    if (note) block.append(make("p", { class: "note" }, note));
    block.append(...children);
    return block;
  }
  function strip(amount, low, high) {
    const width = high - low || 1, track = make("div", { class: "track" });
    const bar = make("i", { class: amount < 0 ? "down" : "up" }), zero = make("i", { class: "zero" });
    bar.style.left = `${(100 * (Math.min(amount, 0) - low)) / width}%`;
    bar.style.width = `${(100 * Math.abs(amount)) / width}%`;
    zero.style.left = `${(-100 * low) / width}%`;
    track.append(bar, zero);
    return track;
  }
  function breakable(name) {
    return name.split(/(?<=[.:#])/).flatMap((piece, i) => (i ? [document.createElement("wbr"), piece] : [piece]));
  }
  function amounts(lines, total, heads) {
    const values = lines.map((line) => line.amount), low = Math.min(0, ...values), high = Math.max(0, ...values);
    const table = make("table", { class: "amounts" });
    const titles = heads.map(([title, kind]) => make("th", { scope: "col", class: kind }, title));
    table.append(make("thead", {}, make("tr", {}, ...titles)));
    const rows = lines.map((line) => {
      const cells = [make("td", { class: "name" }, ...breakable(line.name)), make("td", { class: "strip" }, strip(line.amount, low, high)),
        make("td", { class: "number amount" }, signed(line.amount, 4))];
      for (const text of line.others || []) cells.push(make("td", { class: "number aside" }, text));
      return make("tr", { class: line.rest ? "rest" : "" }, ...cells);
    });
    table.append(make("tbody", {}, ...rows));
    const filler = heads.slice(3).map(() => make("td", { class: "aside" }));
    table.append(make("tfoot", {}, make("tr", {}, make("td", {}, "sum = score"), make("td"), make("td", { class: "number" }, number(total)), ...filler)));
    return table;
  }
  function contributions(row, at) {
    const flat = data.top[at], lines = [];
    for (let i = 0; i < flat.length; i += 3) {
      lines.push({ name: data.columns[flat[i]], amount: Number(flat[i + 1]), others: [number(flat[i + 2]), number(data.trusted[flat[i]])] });
    }
    const more = data.columns.length - lines.length;
    if (more) lines.push({ name: `${more.toLocaleString("en")} more column${more > 1 ? "s" : ""}`, amount: Number(data.rest[at]), rest: true, others: ["", ""] });
    const heads = [["column", "name"], ["", "strip"], ["contribution", "number"], ["here", "number aside"], ["trusted mean", "number aside"]];
    const own = "the reference's own sum over columns";
    const how = data.method === own ? "Parts that sum to the score; orange ones make the input more anomalous."
      : `Parts that sum to the score: ${data.method}.`;
    return part("What the score is made of", how, amounts(lines, score[row], heads));
  }
  function further(row, at) {
    const found = [];
    if (data.parts.length) {
      const lines = data.parts[at].map((amount, i) => ({ name: data.blocks[i] || "other columns", amount: Number(amount) }));
      lines.sort((a, b) => b.amount - a.amount);
      found.push(part("By group of columns", null, amounts(lines, score[row], [["group", "name"], ["", "strip"], ["contribution", "number"]])));
    }
    data.grids.forEach((grid, i) => found.push(heatMap(row, at, grid, i)));
    const near = data.nearest[at], items = [];
    for (let i = 0; i < near.length; i += 2) {
      items.push(make("li", {}, `${data.trustedIds[near[i]]} `, make("small", {}, `distance ${number(near[i + 1], 3)}`)));
    }
    if (items.length) found.push(part("Nearest trusted inputs", "By signature, in trusted standard deviations per column.", make("ul", { class: "near" }, ...items)));
    const donors = Object.entries((data.donors[at] || {}));
    if (donors.length) {
      const list = donors.map(([name, ids]) => make("div", {}, make("dt", {}, name), make("dd", {}, ids.join(", ") || "none")));
      found.push(part("Donors", "Trusted inputs whose activations were put in place.", make("dl", {}, ...list)));
    }
    return found;
  }

  // Heat maps: contributions summed over the columns of a place.
  function cellsOf(at, i) {
    const grid = data.grids[i];
    if (data.cells[i].length) return { sums: data.cells[i][at].map(Number), whole: true };
    const sums = grid.cells.map(() => null), flat = data.top[at]; // null: none of the largest columns is about the cell
    for (let k = 0; k < flat.length; k += 3) {
      const cell = grid.members[flat[k]];
      if (cell >= 0) sums[cell] = (sums[cell] || 0) + Number(flat[k + 1]);
    }
    return { sums, whole: false };
  }
  function heatMap(row, at, grid, i) {
    const { sums, whole } = cellsOf(at, i), most = Math.max(...sums.map(Math.abs)) || 1;
    const title = (name) => (name === "beyond" ? "…" : name); // all positions before the first that has a column
    const letters = Math.min(Math.max(...grid.rows.map((name) => name.length)), 30);
    const widest = Math.max(...grid.columns.map((name) => title(name).length));
    const left = 12 + letters * 6.1, many = grid.columns.length > 24, high = many ? 18 : 26;
    // Many narrow cells carry their value as a tooltip only, and every few of them their name.
    const wide = many ? 14 : Math.min(Math.max(42, widest * 6.6 + 8), 150), every = many ? Math.ceil((widest * 6.6 + 8) / wide) : 1;
    const width = left + wide * grid.columns.length + 2, height = 22 + high * grid.rows.length + 2;
    const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
    const picture = draw("svg", { class: "map", viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
    picture.append(draw("title", {}, `${grid.title}: contributions by ${grid.kind === "positions" ? "position" : "place"}`));
    grid.columns.forEach((name, k) => {
      if (k % every) return;
      const text = draw("text", { x: left + wide * (k + 0.5), y: 14, "text-anchor": "middle" }, many ? title(name) : short(title(name), Math.floor(wide / 6.3)));
      text.append(draw("title", {}, name));
      picture.append(text);
    });
    grid.rows.forEach((name, k) => {
      const text = draw("text", { x: left - 8, y: 22 + high * (k + 0.5) + 4, "text-anchor": "end" }, short(name, letters));
      text.append(draw("title", {}, name));
      picture.append(text);
    });
    const values = grid.cells.map((cell, k) => [cell, sums[k]]);
    for (const [[line, column], amount] of values) {
      if (amount === null) continue;
      const x = left + wide * column, y = 22 + high * line, strength = Math.abs(amount) / most;
      const box = draw("rect", { x: x + 1, y: y + 1, width: wide - 2, height: high - 2, rx: 3, class: `cell ${amount > 0 ? "plus" : amount < 0 ? "minus" : ""}` });
      box.style.setProperty("--w", strength.toFixed(3));
      box.append(draw("title", {}, `${grid.rows[line]}, ${grid.columns[column]}: ${signed(amount)}`));
      picture.append(box);
      if (!many) picture.append(draw("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle", class: "value" }, signed(amount, 2)));
    }
    const holder = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": grid.title });
    holder.append(picture);
    const others = grid.members.includes(-1) ? "; the other columns have no such place" : "";
    const held = `These places hold ${signed(data.totals[i][at], 4)} of the score ${number(score[row])}${others}.`;
    const said = whole ? held : `${held} Drawn are the ${data.top[at].length / 3} largest columns only.`;
    return part(grid.title, `${said} Orange (+) raises the score, blue (−) lowers it.`, holder);
  }

  // Tokens, coloured by what the columns of their positions contribute.
  function tokenStrip(row) {
    const texts = tokens(row), cut = data.cut[row], length = texts.length + cut, sums = texts.map(() => null);
    const i = data.grids.findIndex((grid) => grid.kind === "positions");
    if (i >= 0 && place.has(row)) {
      const grid = data.grids[i], { sums: cells } = cellsOf(place.get(row), i);
      grid.cells.forEach(([, column], k) => {
        for (const at of positions(grid.columns[column], length)) {
          if (cells[k] !== null && at - cut >= 0 && at < length) sums[at - cut] = (sums[at - cut] || 0) + cells[k];
        }
      });
    }
    const known = sums.filter((sum) => sum !== null), most = Math.max(...known.map(Math.abs), 0) || 1;
    const boxes = texts.map((text, k) => {
      const box = make("div", { class: "token" }, make("span", {}, text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅"));
      if (sums[k] === null) return box;
      box.classList.add(sums[k] < 0 ? "minus" : "plus");
      box.style.setProperty("--w", (Math.abs(sums[k]) / most).toFixed(3));
      box.title = `position ${k + cut} (${k + cut - length} from the end): ${signed(sums[k])}`;
      box.append(make("small", {}, signed(sums[k], 2)));
      return box;
    });
    if (cut) boxes.unshift(make("div", { class: "token" }, make("span", {}, `… ${cut.toLocaleString("en")} earlier`)));
    const note = known.length ? "Colour: what each position adds to the score (orange, +) or takes from it (blue, −)."
      : "The columns of this signature are about no single position.";
    return part("Input", note, make("div", { class: "tokens", tabindex: 0, role: "region", "aria-label": "Tokens" }, ...boxes));
  }
  function positions(name, length) {
    if (/^-?\d+$/.test(name)) return [Number(name) < 0 ? length + Number(name) : Number(name)];
    const span = Object.hasOwn(data.spans, name) ? data.spans[name] : null;
    return span ? Array.from({ length: Math.max(span[1] - span[0], 0) }, (_, k) => span[0] + k) : [];
  }

  // The hypothesis: the claimed variable whose columns contribute most is the one that fails.
  function markGraph(row) {
    const note = byId("graph-note");
    if (!note) return;
    const parts = data.parts.length && place.has(row) ? data.parts[place.get(row)].map(Number) : [];
    const worst = parts.indexOf(Math.max(...parts));
    document.querySelectorAll(".graph .node").forEach((node) => {
      const blocks = data.nodes[Number(node.dataset.node)], tested = blocks.length > 0 && parts.length > 0;
      const amount = blocks.reduce((sum, block) => sum + (parts[block] || 0), 0), leads = tested && blocks.includes(worst);
      const failed = leads && isFlag(row);
      node.classList.toggle("failed", failed);
      node.querySelector(".node-mark").textContent = tested ? `${signed(amount)}${failed ? ", fails ✗" : leads ? ", largest" : ""}` : "";
    });
    if (!parts.length) note.textContent = "The parts of this input's score are not in the report.";
    else {
      const verb = isFlag(row) ? "The part that fails" : "The input is not flagged. The part that contributes most";
      note.textContent = `${verb}: ${data.blocks[worst] || "other columns"}. Numbers are contributions to the score; causes stand to the left.`;
    }
  }

  select();
  const start = data.ids.findIndex((id) => anchor(id) === location.hash);
  if (shown.length) open(start >= 0 ? start : shown[0], false);
  document.documentElement.dataset.ready = "true";
})();
