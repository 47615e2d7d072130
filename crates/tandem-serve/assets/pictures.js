// The last token on both devices, and the experts: pictures that a pointer or the arrow keys go through.

const view = { zoom: 1, recent: false, counts: [], timeline: {}, experts: {} };

function showTimeline(timeline) {
  const panel = $("timeline"),
    box = panel.querySelector(".chart");
  if (!timeline || !timeline.spans.length) {
    box.replaceChildren(element("p", { class: "empty" }, "No token yet."));
    return;
  }
  const sum = {};
  for (const s of timeline.spans) sum[kindOf(s.operation)] = (sum[kindOf(s.operation)] ?? 0) + s.duration_ms;
  const all = Object.values(sum).reduce((a, b) => a + b, 0) || 1;
  panel.querySelector(".duration").textContent =
    `${figure(timeline.duration_ms)} ms, ${timeline.spans.length} operations`;
  panel
    .querySelector(".legend")
    .replaceChildren(
      ...Object.entries(KINDS).map(([kind, name]) =>
        element(
          "span",
          { style: `--color: var(--${kind})` },
          `${name} ${figure((100 * (sum[kind] ?? 0)) / all, 0)} %`,
        ),
      ),
    );
  const width = Math.max(panel.querySelector(".scroll").clientWidth, 280) * view.zoom,
    [left, row, gap] = [42, 34, 8],
    height = 2 * (row + gap) + 22;
  const scale = (width - left - 6) / Math.max(timeline.duration_ms, 1e-6);
  const svg = graphic("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `${timeline.spans.length} operations of the last token in ${figure(timeline.duration_ms)} ms. Left and right arrow keys go through them.`,
  });
  ["CPU", "iGPU"].forEach((name, n) => {
    svg.append(graphic("text", { x: 0, y: n * (row + gap) + row / 2 + 4 }, name));
    svg.append(
      graphic("rect", { x: left, y: n * (row + gap), width: width - left - 6, height: row, fill: "var(--sunken)" }),
    );
  });
  const marks = ticks(timeline.duration_ms, 6 * view.zoom).filter((ms) => ms <= timeline.duration_ms);
  for (const ms of marks)
    svg.append(
      graphic(
        "text",
        { x: left + ms * scale, y: height - 4, "text-anchor": "middle" },
        `${figure(ms, ms % 1 ? 2 : 0)}${ms ? "" : " ms"}`,
      ),
    );
  const items = timeline.spans.map((s) => {
    const item = {
      x: left + s.start_ms * scale,
      y: (s.device === "igpu" ? 1 : 0) * (row + gap),
      width: Math.max(s.duration_ms * scale, 0.5),
      height: row,
    };
    svg.append(
      graphic("rect", {
        class: "span",
        x: item.x.toFixed(2),
        y: item.y,
        width: item.width.toFixed(2),
        height: row,
        fill: `var(--${kindOf(s.operation)})`,
      }),
    );
    const layer = s.layer === null || s.layer === undefined ? "" : `, layer ${s.layer}`;
    return {
      ...item,
      text: `${s.operation}${layer} on ${s.device === "igpu" ? "the iGPU" : "the CPU"}: ${figure(s.duration_ms, 3)} ms, from ${figure(s.start_ms, 3)} ms on`,
    };
  });
  const step = (n, pressed) => ({ ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: items.length - 1 })[pressed];
  explorable(svg, items, panel.querySelector(".readout"), step, view.timeline);
  replaceChart(box, svg);
}

/** `now` is on the scale of the server's uptime. */
function showExperts(counts, now) {
  const panel = $("experts"),
    box = panel.querySelector(".chart"),
    experts = counts[0]?.length ?? 0;
  if (view.counts[view.counts.length - 1]?.now !== now) view.counts.push({ now, counts });
  while (view.counts.length > 1 && view.counts[0].now < now - 10.5) view.counts.shift();
  if (!experts) {
    box.replaceChildren(element("p", { class: "empty" }, "Not known."));
    return;
  }
  const before = view.counts[0].counts;
  const used = counts.map((row, l) => row.map((n, e) => (view.recent ? n - (before[l]?.[e] ?? 0) : n)));
  const total = used.flat().reduce((a, b) => a + b, 0);
  const room = Math.max(panel.querySelector(".scroll").clientWidth, 280),
    left = 28,
    cell = Math.min(34, Math.max(9, (room - left - 4) / experts)),
    tall = Math.min(cell, Math.max(8, 420 / counts.length));
  const svg = graphic("svg", {
    width: left + experts * cell + 4,
    height: counts.length * tall + 20,
    role: "img",
    "aria-label": `How often each of ${experts} experts in each of ${counts.length} layers was chosen; ${total} choices. Arrow keys go through the cells.`,
  });
  const items = used.flatMap((row, layer) => {
    const sum = row.reduce((a, b) => a + b, 0),
      skip = counts.length > 16 ? 4 : 1;
    if (layer % skip === 0)
      svg.append(
        graphic("text", { x: left - 5, y: layer * tall + tall / 2 + 4, "text-anchor": "end" }, String(layer)),
      );
    return row.map((n, expert) => {
      const share = sum ? n / sum : 0,
        heat = Math.min(1, (share * experts) / 3);
      const item = {
        x: left + expert * cell,
        y: layer * tall,
        width: cell - 1,
        height: tall - 1,
        text: `layer ${layer}, expert ${expert}: ${n} tokens, ${figure(100 * share, 1)} % of the layer's (alike: ${figure(100 / experts, 1)} %)`,
      };
      svg.append(
        graphic("rect", {
          class: "cell",
          x: item.x,
          y: item.y,
          width: item.width,
          height: item.height,
          fill: mix(heat),
        }),
      );
      return item;
    });
  });
  for (let e = 0; e < experts; e += experts > 16 ? 8 : cell < 16 ? 4 : 1)
    svg.append(
      graphic(
        "text",
        { x: left + e * cell + cell / 2, y: counts.length * tall + 14, "text-anchor": "middle" },
        String(e),
      ),
    );
  const step = (n, pressed) => {
    if (n < 0) return 0;
    const [row, column] = [Math.floor(n / experts), n % experts];
    return {
      ArrowRight: column + 1 < experts ? n + 1 : n,
      ArrowLeft: column ? n - 1 : n,
      ArrowDown: row + 1 < counts.length ? n + experts : n,
      ArrowUp: row ? n - experts : n,
    }[pressed];
  };
  const readout = panel.querySelector(".readout");
  explorable(svg, items, readout, step, view.experts);
  if (view.experts.at === undefined)
    readout.textContent = `Rows are layers, columns experts. ${figure(total, 0)} choices ${view.recent ? "in the last 10 s" : "since the start"}.`;
  replaceChart(box, svg);
}

/** A colour of the heat map's scale, from 0 to 1, of the theme that is shown. */
function mix(heat) {
  const style = getComputedStyle(document.documentElement),
    ends = ["--heat-0", "--heat-1"].map((n) => style.getPropertyValue(n).split(",").map(Number));
  return `rgb(${[0, 1, 2].map((c) => Math.round(ends[0][c] + (ends[1][c] - ends[0][c]) * heat)).join(",")})`;
}

/** Puts a new drawing in place of the old one; the keyboard stays where it was. */
function replaceChart(box, svg) {
  const focused = box.contains(document.activeElement);
  box.replaceChildren(svg);
  if (focused) svg.focus({ preventScroll: true });
}
