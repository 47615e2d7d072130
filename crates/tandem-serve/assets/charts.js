// Drawing: curves over time, the timeline, the heat map.

/** Round numbers from 0 to at least `most`. */
function ticks(most, count) {
  const rough = Math.max(most, 1e-9) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((n) => n * power >= rough) * power;
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, n) => n * step);
}

/** Curves over time. `series`: {field, color}; `lines`: {value, kind, label} across. */
function curves(box, points, series, lines, { height = 190, span = 60, unit = "" } = {}) {
  const width = Math.max(box.clientWidth, 280),
    [left, right, top, bottom] = [38, 8, 12, 20];
  const values = [...points.flatMap((p) => series.map((s) => p[s.field] ?? 0)), ...lines.map((l) => l.value)];
  const marks = ticks(Math.max(...values, 1e-3) * 1.05, 4),
    most = marks[marks.length - 1];
  const now = points.length ? points[points.length - 1].t_s : 0;
  const x = (t) => left + ((t - now + span) / span) * (width - left - right);
  const y = (v) => height - bottom - (v / most) * (height - top - bottom);
  const svg = graphic("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const newest = points[points.length - 1] ?? {};
  svg.setAttribute(
    "aria-label",
    `${series.map((s) => `${s.name} ${figure(newest[s.field])} ${unit}`).join(", ")} now; ${lines.map((l) => l.label).join(", ")}`,
  );
  for (const mark of marks) {
    svg.append(graphic("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    svg.append(
      graphic("text", { x: left - 5, y: y(mark) + 4, "text-anchor": "end" }, figure(mark, mark % 1 ? 1 : 0)),
    );
  }
  for (const ago of [60, 40, 20, 0])
    svg.append(
      graphic(
        "text",
        { x: x(now - ago), y: height - 5, "text-anchor": ago === 60 ? "start" : ago ? "middle" : "end" },
        ago ? `${ago} s ago` : "now",
      ),
    );
  for (const { field, color } of series) {
    let pen = "M",
      path = "";
    for (const point of points) {
      if (point.t_s < now - span) continue;
      if (point[field] === null || point[field] === undefined) {
        pen = "M";
        continue;
      }
      path += `${pen}${x(point.t_s).toFixed(1)} ${y(point[field]).toFixed(1)}`;
      pen = "L";
    }
    if (path) svg.append(graphic("path", { class: "curve", d: path, stroke: `var(--${color})` }));
  }
  for (const { value, kind, label } of lines) {
    svg.append(graphic("line", { class: kind, x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(graphic("text", { x: width - right - 2, y: y(value) - 3, "text-anchor": "end" }, label));
  }
  box.replaceChildren(svg);
}

/** A curve without axes, for a tile. */
function sparkline(tile, points, field) {
  const [width, height, span] = [160, 32, 60];
  const now = points.length ? points[points.length - 1].t_s : 0,
    most = Math.max(...points.map((p) => p[field] ?? 0), 1e-9);
  const shown = points.filter((p) => p[field] !== null && p[field] !== undefined && p.t_s >= now - span);
  const at = (p) =>
    `${(((p.t_s - now + span) / span) * width).toFixed(1)} ${(height - 2 - (p[field] / most) * (height - 4)).toFixed(1)}`;
  const svg = graphic("svg", {
    viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  if (shown.length > 1)
    svg.append(graphic("path", { class: "curve", d: `M${shown.map(at).join("L")}`, stroke: "var(--accent)" }));
  tile.querySelector("svg")?.remove();
  tile.append(svg);
}

const KINDS = {
  attention: "attention",
  experts: "experts",
  routing: "router, dispatch",
  norms: "norms",
  vocabulary: "embedding, lm_head",
};

function kindOf(operation) {
  if (operation.endsWith("layernorm")) return "norms";
  if (operation.startsWith("attention")) return "attention";
  if (operation.startsWith("expert_ffn")) return "experts";
  return operation === "embedding" || operation === "lm_head" ? "vocabulary" : "routing";
}

/**
 * Cells or spans that a pointer or the arrow keys go through, with a line that says what is there. `items` have a rectangle
 * (x, y, width, height) and a text; `step(n, key)` is the item that an arrow key leads to.
 */
function explorable(svg, items, readout, step, state) {
  const cursor = graphic("rect", { class: "cursor", visibility: "hidden" });
  svg.append(cursor);
  svg.setAttribute("tabindex", "0");
  svg.classList.add("pixels");
  const show = (n) => {
    const item = items[n];
    if (!item) return;
    state.at = n;
    for (const side of ["x", "y", "width", "height"]) cursor.setAttribute(side, item[side]);
    cursor.setAttribute("visibility", "visible");
    readout.textContent = item.text;
  };
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect(),
      x = event.clientX - area.left,
      y = event.clientY - area.top;
    const inside = (i) => x >= i.x && x < i.x + Math.max(i.width, 2) && y >= i.y && y < i.y + i.height;
    const n = items.findIndex(inside);
    if (n >= 0) show(n);
  });
  svg.addEventListener("keydown", (event) => {
    const n = step(state.at ?? -1, event.key);
    if (n === undefined || !items[n]) return;
    event.preventDefault();
    show(n);
  });
  if (state.at !== undefined && items[state.at]) show(state.at);
}
