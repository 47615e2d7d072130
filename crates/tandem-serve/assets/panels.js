// The figures: one function a panel. Each is given the newest state, and shows all of it.

const seen = { strip: [], counts: [], plan: 0, zoom: 1, recent: false, timeline: {}, experts: {}, shown: {} };

function tile(id, value, note) {
  const card = $(id);
  card.querySelector(".value").textContent = value;
  if (note !== undefined) card.querySelector("small").textContent = note;
}

function showTiles({ tokens, requests, memory }) {
  tile("tile-generated", figure(tokens.generated_per_s));
  sparkline($("tile-generated"), tokens.history, "generated_per_s");
  tile("tile-prompt", figure(tokens.prompt_per_s));
  sparkline($("tile-prompt"), tokens.history, "prompt_per_s");
  const cached = tokens.prompt_total ? 100 * tokens.cached_total / tokens.prompt_total : null;
  tile("tile-cache", cached === null ? "–" : `${figure(cached, 0)} %`, `${figure(tokens.cached_total, 0)} of ${figure(tokens.prompt_total, 0)} prompt tokens`);
  tile("tile-memory", memory.resident_mb === null ? "–" : `${figure(memory.resident_mb, 0)} MB`, `at most ${figure(memory.peak_mb, 0)} MB so far`);
  tile("tile-answers", figure(requests.completed, 0), `${requests.failed} failed, ${requests.cancelled} cancelled, ${requests.refused} refused; ${figure(tokens.generated_total, 0)} tokens`);
}

function showBandwidth(b) {
  const sources = { memory_controller: "measured by the memory controller, other programs included", operations: "bytes that operations count" };
  const note = $("bandwidth-note");
  note.replaceChildren(sources[b.source] ?? "not measured", " ");
  if (b.throttled) note.append(element("span", { class: "chip limit" }, "throttled"));
  else if (b.throttled === false) note.append(element("span", { class: "chip good" }, "below the throttle line"));
  const lines = [];
  if (b.capacity_gbps) lines.push({ value: b.capacity_gbps, kind: "limit", label: `capacity ${figure(b.capacity_gbps)} GB/s` });
  if (b.throttle_gbps) lines.push({ value: b.throttle_gbps, kind: "throttle", label: `throttle ${figure(b.throttle_gbps)} GB/s` });
  const series = [{ field: "total_gbps", color: "total", name: "both" }, { field: "cpu_gbps", color: "cpu", name: "CPU" }, { field: "igpu_gbps", color: "igpu", name: "iGPU" }];
  curves($("bandwidth").querySelector(".chart"), b.history, series, lines, { unit: "GB/s" });
  const devices = [["CPU", "cpu", b.cpu_gbps], ["iGPU", "igpu", b.igpu_gbps], ["both", "total", b.total_gbps]];
  const bars = devices.map(([name, color, value]) => {
    if (!b.capacity_gbps) return element("div", { class: "numbers" }, `${name} ${figure(value)} GB/s`);
    const share = 100 * (value ?? 0) / b.capacity_gbps;
    const meter = element("div", { class: "meter", style: `--color: var(--${color})` }, element("i", { style: `width: ${Math.min(100, share)}%` }));
    if (b.throttle_gbps) meter.append(element("b", { style: `left: ${Math.min(100, 100 * b.throttle_gbps / b.capacity_gbps)}%` }));
    return element("div", {}, element("small", { class: "numbers" }, `${name} ${figure(value)} of ${figure(b.capacity_gbps)} GB/s (${figure(share, 0)} %)`), meter);
  });
  if (!b.capacity_gbps) bars.push(element("small", { class: "soft" }, "The capacity is not known; tandem calibrate measures it."));
  $("bandwidth").querySelector(".bars").replaceChildren(...bars);
}

function showToken(t) {
  const chip = t.enabled ? (t.holder ? element("span", { class: `chip ${t.holder === "igpu" ? "igpu" : "cpu"}` }, t.holder === "igpu" ? "iGPU holds it" : "CPU holds it") : element("span", { class: "chip" }, "free")) : element("span", { class: "chip" }, "off");
  $("token").querySelector(".who").replaceChildren(chip);
  $("token").querySelector(".what").textContent = t.enabled ? `${t.holder_operation ?? "nothing heavy runs"}; ${t.waiting} waiting` : "Heavy operations do not take turns here.";
  seen.strip.push(t.holder ?? "");
  seen.strip.splice(0, seen.strip.length - 120);
  const strip = $("token").querySelector(".strip"), share = (who) => figure(100 * seen.strip.filter((h) => h === who).length / seen.strip.length, 0);
  strip.hidden = !t.enabled;
  strip.setAttribute("aria-label", `Holder at the last ${seen.strip.length} looks: CPU ${share("cpu")} %, iGPU ${share("igpu")} %, nobody ${share("")} %`);
  strip.replaceChildren(...seen.strip.map((holder) => element("i", { class: holder === "cpu" || holder === "igpu" ? holder : "" })));
}

function showQueue(r) {
  const queue = $("queue"), dots = Math.min(Math.max(r.max_running, r.running), 64);
  queue.querySelector(".counts").textContent = `${r.running} of ${r.max_running} at work, ${r.waiting} of ${r.max_waiting} waiting`;
  queue.querySelector(".dots").setAttribute("aria-label", `${r.running} of ${r.max_running} at work`);
  queue.querySelector(".dots").replaceChildren(...Array.from({ length: dots }, (_, n) => element("i", { class: n < r.running ? "on" : "" })));
  queue.querySelector(".meter i").style.width = `${r.max_waiting ? Math.min(100, 100 * r.waiting / r.max_waiting) : 0}%`;
}

function showTimeline(timeline) {
  const panel = $("timeline"), box = panel.querySelector(".chart");
  if (!timeline || !timeline.spans.length) { box.replaceChildren(element("p", { class: "empty" }, "No token yet.")); return; }
  const sum = {};
  for (const s of timeline.spans) sum[kindOf(s.operation)] = (sum[kindOf(s.operation)] ?? 0) + s.duration_ms;
  const all = Object.values(sum).reduce((a, b) => a + b, 0) || 1;
  panel.querySelector(".duration").textContent = `${figure(timeline.duration_ms)} ms, ${timeline.spans.length} operations`;
  panel.querySelector(".legend").replaceChildren(...Object.entries(KINDS).map(([kind, name]) => element("span", { style: `--color: var(--${kind})` }, `${name} ${figure(100 * (sum[kind] ?? 0) / all, 0)} %`)));
  const width = Math.max(panel.querySelector(".scroll").clientWidth, 280) * seen.zoom, [left, row, gap] = [42, 34, 8], height = 2 * (row + gap) + 22;
  const scale = (width - left - 6) / Math.max(timeline.duration_ms, 1e-6);
  const svg = graphic("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${timeline.spans.length} operations of the last token in ${figure(timeline.duration_ms)} ms. Left and right arrow keys go through them.` });
  ["CPU", "iGPU"].forEach((name, n) => {
    svg.append(graphic("text", { x: 0, y: n * (row + gap) + row / 2 + 4 }, name));
    svg.append(graphic("rect", { x: left, y: n * (row + gap), width: width - left - 6, height: row, fill: "var(--sunken)" }));
  });
  const marks = ticks(timeline.duration_ms, 6 * seen.zoom).filter((ms) => ms <= timeline.duration_ms);
  for (const ms of marks) svg.append(graphic("text", { x: left + ms * scale, y: height - 4, "text-anchor": "middle" }, `${figure(ms, ms % 1 ? 2 : 0)}${ms ? "" : " ms"}`));
  const items = timeline.spans.map((s) => {
    const item = { x: left + s.start_ms * scale, y: (s.device === "igpu" ? 1 : 0) * (row + gap), width: Math.max(s.duration_ms * scale, .5), height: row };
    svg.append(graphic("rect", { class: "span", x: item.x.toFixed(2), y: item.y, width: item.width.toFixed(2), height: row, fill: `var(--${kindOf(s.operation)})` }));
    const layer = s.layer === null || s.layer === undefined ? "" : `, layer ${s.layer}`;
    return { ...item, text: `${s.operation}${layer} on ${s.device === "igpu" ? "the iGPU" : "the CPU"}: ${figure(s.duration_ms, 3)} ms, from ${figure(s.start_ms, 3)} ms on` };
  });
  const step = (n, pressed) => ({ ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: items.length - 1 })[pressed];
  explorable(svg, items, panel.querySelector(".readout"), step, seen.timeline);
  replaceChart(box, svg);
}

function showExperts(counts) {
  const panel = $("experts"), box = panel.querySelector(".chart"), experts = counts[0]?.length ?? 0;
  seen.counts.push(counts);
  seen.counts.splice(0, seen.counts.length - 21);
  if (!experts) { box.replaceChildren(element("p", { class: "empty" }, "Not known.")); return; }
  const before = seen.counts[0];
  const used = counts.map((row, l) => row.map((n, e) => (seen.recent ? n - (before[l]?.[e] ?? 0) : n)));
  const total = used.flat().reduce((a, b) => a + b, 0);
  const room = Math.max(panel.querySelector(".scroll").clientWidth, 280), left = 28, cell = Math.min(34, Math.max(9, (room - left - 4) / experts)), tall = Math.min(cell, Math.max(8, 420 / counts.length));
  const svg = graphic("svg", { width: left + experts * cell + 4, height: counts.length * tall + 20, role: "img", "aria-label": `How often each of ${experts} experts in each of ${counts.length} layers was chosen; ${total} choices. Arrow keys go through the cells.` });
  const items = used.flatMap((row, layer) => {
    const sum = row.reduce((a, b) => a + b, 0), skip = counts.length > 16 ? 4 : 1;
    if (layer % skip === 0) svg.append(graphic("text", { x: left - 5, y: layer * tall + tall / 2 + 4, "text-anchor": "end" }, String(layer)));
    return row.map((n, expert) => {
      const share = sum ? n / sum : 0, heat = Math.min(1, share * experts / 3);
      const item = { x: left + expert * cell, y: layer * tall, width: cell - 1, height: tall - 1, text: `layer ${layer}, expert ${expert}: ${n} tokens, ${figure(100 * share, 1)} % of the layer's (alike: ${figure(100 / experts, 1)} %)` };
      svg.append(graphic("rect", { class: "cell", x: item.x, y: item.y, width: item.width, height: item.height, fill: mix(heat) }));
      return item;
    });
  });
  for (let e = 0; e < experts; e += experts > 16 ? 8 : cell < 16 ? 4 : 1) svg.append(graphic("text", { x: left + e * cell + cell / 2, y: counts.length * tall + 14, "text-anchor": "middle" }, String(e)));
  const step = (n, pressed) => {
    if (n < 0) return 0;
    const [row, column] = [Math.floor(n / experts), n % experts];
    return { ArrowRight: column + 1 < experts ? n + 1 : n, ArrowLeft: column ? n - 1 : n, ArrowDown: row + 1 < counts.length ? n + experts : n, ArrowUp: row ? n - experts : n }[pressed];
  };
  const readout = panel.querySelector(".readout");
  explorable(svg, items, readout, step, seen.experts);
  if (seen.experts.at === undefined) readout.textContent = `Rows are layers, columns experts. ${figure(total, 0)} choices ${seen.recent ? "in the last 10 s" : "since the start"}.`;
  replaceChart(box, svg);
}

/** A colour of the heat map's scale, from 0 to 1, of the theme that is shown. */
function mix(heat) {
  const style = getComputedStyle(document.documentElement), ends = ["--heat-0", "--heat-1"].map((n) => style.getPropertyValue(n).split(",").map(Number));
  return `rgb(${[0, 1, 2].map((c) => Math.round(ends[0][c] + (ends[1][c] - ends[0][c]) * heat)).join(",")})`;
}

/** Puts a new drawing in place of the old one; the keyboard stays where it was. */
function replaceChart(box, svg) {
  const focused = box.contains(document.activeElement);
  box.replaceChildren(svg);
  if (focused) svg.focus({ preventScroll: true });
}

function showPlan(plan) {
  const text = JSON.stringify([plan, seen.plan]);
  if (seen.shown.plan === text) return; // it hardly ever changes, and who reads it keeps place and selection
  seen.shown.plan = text;
  const tabs = $("plan").querySelector("[role=tablist]"), box = $("plan").querySelector("[role=tabpanel]");
  const shown = plan[seen.plan] ?? plan[0];
  if (!shown) { box.replaceChildren(element("p", { class: "empty" }, "Not known.")); return; }
  const focused = tabs.contains(document.activeElement);
  tabs.replaceChildren(...plan.map((p, n) => {
    const tab = element("button", { type: "button", role: "tab", "aria-selected": String(p === shown), tabindex: p === shown ? "0" : "-1" }, p.case);
    tab.addEventListener("click", () => { seen.plan = n; showPlan(plan); });
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: n + 1, ArrowLeft: n - 1 }[event.key];
      if (to !== undefined && plan[to]) { seen.plan = to; showPlan(plan); }
    });
    return tab;
  }));
  if (focused) tabs.querySelector("[aria-selected=true]").focus();
  const groups = []; // neighbours that are computed in the same place for the same reason share a row
  for (const s of shown.steps) {
    const last = groups[groups.length - 1];
    if (last && last.layers === s.layers && last.device === s.device && last.why === s.why) last.operations.push(s.operation);
    else groups.push({ ...s, operations: [s.operation] });
  }
  const chip = (device) => element("span", { class: `chip ${device === "cpu" || device === "igpu" ? device : ""}` }, device);
  const rows = groups.map((g) => element("tr", {}, element("td", {}, g.operations.join(", ")), element("td", {}, g.layers), element("td", {}, chip(g.device)), element("td", {}, g.why)));
  const head = element("tr", {}, ...["operation", "layers", "where", "why here"].map((name) => element("th", { scope: "col" }, name)));
  box.replaceChildren(element("p", { class: "soft" }, shown.name), element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}
