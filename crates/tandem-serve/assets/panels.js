// The figures: one function a panel. Each is given the newest state, and shows all of it.

const seen = { strip: [], plan: 0, shownPlan: "" };

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
  const cached = tokens.prompt_total ? (100 * tokens.cached_total) / tokens.prompt_total : null;
  tile(
    "tile-cache",
    cached === null ? "–" : `${figure(cached, 0)} %`,
    `${figure(tokens.cached_total, 0)} of ${figure(tokens.prompt_total, 0)} prompt tokens`,
  );
  tile(
    "tile-memory",
    memory.resident_mb === null ? "–" : `${figure(memory.resident_mb, 0)} MB`,
    `at most ${figure(memory.peak_mb, 0)} MB so far`,
  );
  tile(
    "tile-answers",
    figure(requests.completed, 0),
    `${requests.failed} failed, ${requests.cancelled} cancelled, ${requests.refused} refused; ${figure(tokens.generated_total, 0)} tokens`,
  );
}

function showBandwidth(b) {
  const sources = {
    memory_controller: "measured by the memory controller, other programs included",
    operations: "bytes that operations count",
  };
  const note = $("bandwidth-note");
  note.replaceChildren(sources[b.source] ?? "not measured", " ");
  if (b.throttled) note.append(element("span", { class: "chip limit" }, "throttled"));
  else if (b.throttled === false) note.append(element("span", { class: "chip good" }, "below the throttle line"));
  const lines = [];
  if (b.capacity_gbps)
    lines.push({ value: b.capacity_gbps, kind: "limit", label: `capacity ${figure(b.capacity_gbps)} GB/s` });
  if (b.throttle_gbps)
    lines.push({ value: b.throttle_gbps, kind: "throttle", label: `throttle ${figure(b.throttle_gbps)} GB/s` });
  const series = [
    { field: "total_gbps", color: "total", name: "both" },
    { field: "cpu_gbps", color: "cpu", name: "CPU" },
    { field: "igpu_gbps", color: "igpu", name: "iGPU" },
  ];
  curves($("bandwidth").querySelector(".chart"), b.history, series, lines, { unit: "GB/s" });
  const devices = [
    ["CPU", "cpu", b.cpu_gbps],
    ["iGPU", "igpu", b.igpu_gbps],
    ["both", "total", b.total_gbps],
  ];
  const bars = devices.map(([name, color, value]) => {
    if (!b.capacity_gbps) return element("div", { class: "numbers" }, `${name} ${figure(value)} GB/s`);
    const share = (100 * (value ?? 0)) / b.capacity_gbps;
    const meter = element(
      "div",
      { class: "meter", style: `--color: var(--${color})` },
      element("i", { style: `width: ${Math.min(100, share)}%` }),
    );
    if (b.throttle_gbps)
      meter.append(element("b", { style: `left: ${Math.min(100, (100 * b.throttle_gbps) / b.capacity_gbps)}%` }));
    return element(
      "div",
      {},
      element(
        "small",
        { class: "numbers" },
        `${name} ${figure(value)} of ${figure(b.capacity_gbps)} GB/s (${figure(share, 0)} %)`,
      ),
      meter,
    );
  });
  if (!b.capacity_gbps)
    bars.push(element("small", { class: "soft" }, "The capacity is not known; tandem calibrate measures it."));
  $("bandwidth")
    .querySelector(".bars")
    .replaceChildren(...bars);
}

function showToken(t) {
  const chip = t.enabled
    ? t.holder
      ? element(
          "span",
          { class: `chip ${t.holder === "igpu" ? "igpu" : "cpu"}` },
          t.holder === "igpu" ? "iGPU holds it" : "CPU holds it",
        )
      : element("span", { class: "chip" }, "free")
    : element("span", { class: "chip" }, "off");
  $("token").querySelector(".who").replaceChildren(chip);
  $("token").querySelector(".what").textContent = t.enabled
    ? `${t.holder_operation ?? "nothing heavy runs"}; ${t.waiting} waiting`
    : "Heavy operations do not take turns here.";
  seen.strip.push(t.holder ?? "");
  seen.strip.splice(0, seen.strip.length - 120);
  const strip = $("token").querySelector(".strip"),
    share = (who) => figure((100 * seen.strip.filter((h) => h === who).length) / seen.strip.length, 0);
  strip.hidden = !t.enabled;
  strip.setAttribute(
    "aria-label",
    `Holder at the last ${seen.strip.length} looks: CPU ${share("cpu")} %, iGPU ${share("igpu")} %, nobody ${share("")} %`,
  );
  strip.replaceChildren(
    ...seen.strip.map((holder) => element("i", { class: holder === "cpu" || holder === "igpu" ? holder : "" })),
  );
}

function showQueue(r) {
  const queue = $("queue"),
    dots = Math.min(Math.max(r.max_running, r.running), 64);
  queue.querySelector(".counts").textContent =
    `${r.running} of ${r.max_running} at work, ${r.waiting} of ${r.max_waiting} waiting`;
  queue.querySelector(".dots").setAttribute("aria-label", `${r.running} of ${r.max_running} at work`);
  queue
    .querySelector(".dots")
    .replaceChildren(...Array.from({ length: dots }, (_, n) => element("i", { class: n < r.running ? "on" : "" })));
  queue.querySelector(".meter i").style.width =
    `${r.max_waiting ? Math.min(100, (100 * r.waiting) / r.max_waiting) : 0}%`;
}

function showPlan(plan) {
  const text = JSON.stringify([plan, seen.plan]);
  if (seen.shownPlan === text) return; // it hardly ever changes, and who reads it keeps place and selection
  seen.shownPlan = text;
  const tabs = $("plan").querySelector("[role=tablist]"),
    box = $("plan").querySelector("[role=tabpanel]");
  const shown = plan[seen.plan] ?? plan[0];
  if (!shown) {
    box.replaceChildren(element("p", { class: "empty" }, "Not known."));
    return;
  }
  const focused = tabs.contains(document.activeElement);
  tabs.replaceChildren(
    ...plan.map((p, n) => {
      const tab = element(
        "button",
        { type: "button", role: "tab", "aria-selected": String(p === shown), tabindex: p === shown ? "0" : "-1" },
        p.case,
      );
      tab.addEventListener("click", () => {
        seen.plan = n;
        showPlan(plan);
      });
      tab.addEventListener("keydown", (event) => {
        const to = { ArrowRight: n + 1, ArrowLeft: n - 1 }[event.key];
        if (to !== undefined && plan[to]) {
          seen.plan = to;
          showPlan(plan);
        }
      });
      return tab;
    }),
  );
  if (focused) tabs.querySelector("[aria-selected=true]").focus();
  const groups = []; // neighbours that are computed in the same place for the same reason share a row
  for (const s of shown.steps) {
    const last = groups[groups.length - 1];
    if (last && last.layers === s.layers && last.device === s.device && last.why === s.why)
      last.operations.push(s.operation);
    else groups.push({ ...s, operations: [s.operation] });
  }
  const chip = (device) =>
    element("span", { class: `chip ${device === "cpu" || device === "igpu" ? device : ""}` }, device);
  const rows = groups.map((g) =>
    element(
      "tr",
      {},
      element("td", {}, g.operations.join(", ")),
      element("td", {}, g.layers),
      element("td", {}, chip(g.device)),
      element("td", {}, g.why),
    ),
  );
  const head = element(
    "tr",
    {},
    ...["operation", "layers", "where", "why here"].map((name) => element("th", { scope: "col" }, name)),
  );
  box.replaceChildren(
    element("p", { class: "soft" }, shown.name),
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}
