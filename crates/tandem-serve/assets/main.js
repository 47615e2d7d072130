// The page as a whole: where the figures come from, the theme, the key.

const page = { model: "", paused: false, newest: null, stream: null };

function show(state) {
  page.newest = state;
  page.model = state.model.id;
  $("model").textContent =
    `${state.model.id}: ${state.model.layers} layers, ${state.model.experts_per_token} of ${state.model.experts} experts a token, context ${figure(state.model.context, 0)} tokens`;
  $("uptime").textContent = `up ${duration(state.uptime_s)}`;
  document.title = `${figure(state.tokens.generated_per_s, 0)} tokens/s · Tandem`;
  $("chat-rate").textContent =
    chat.running && state.tokens.generated_per_s !== null ? `${figure(state.tokens.generated_per_s)} tokens/s` : "";
  showTiles(state);
  showBandwidth(state.bandwidth);
  showToken(state.token);
  showQueue(state.requests);
  showTimeline(state.timeline);
  showExperts(state.experts.counts, state.uptime_s);
  showPlan(state.plan);
}

function tell(state, text) {
  if ($("state").dataset.state !== state) {
    $("state").dataset.state = state;
    $("state").textContent = text;
  }
}

/** Listens until the stream breaks off, and again after a while. Where too many listen already, it asks now and then. */
async function listen() {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 15000)) {
    while (document.hidden || page.paused) await once(document, "visibilitychange", 500);
    page.stream = new AbortController();
    try {
      const answer = await ask("/telemetry/stream", { signal: page.stream.signal });
      await events(answer, (data) => {
        if (page.paused) return;
        show(JSON.parse(data));
        tell("live", "live");
        wait = 1000;
      });
    } catch (error) {
      if (document.hidden || page.paused) continue;
      if (error.status === 401) {
        tell("lost", "needs an API key");
        askForKey();
        await once(key, null, 1e9);
        continue;
      }
      if (error.status === 503 && (await look())) {
        await pass(2000);
        wait = 1000;
        continue;
      }
    }
    if (!document.hidden && !page.paused) {
      tell("lost", "no connection");
      await pass(wait);
    }
  }
}

async function look() {
  try {
    show(await (await ask("/dashboard/state")).json());
    tell("live", "live, every 2 s");
    return true;
  } catch {
    return false;
  }
}

const pass = (ms) => new Promise((done) => setTimeout(done, ms));

/** The next time that something happens, or after so many milliseconds. */
function once(target, event, ms) {
  return new Promise((done) => {
    if (target === key) key.changed = done;
    else target.addEventListener(event, done, { once: true });
    if (ms < 1e9) setTimeout(done, ms);
  });
}

function askForKey() {
  const dialog = $("key-dialog");
  if (!dialog.open) {
    $("key-value").value = "";
    dialog.showModal();
  }
}

async function learnProps() {
  try {
    chat.template = (await (await ask("/props")).json()).has_chat_template !== false;
  } catch {
    /* the stream says what is wrong */
  }
}

function setUpButtons() {
  const themes = ["system", "light", "dark"];
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
    $("theme").dataset.theme = theme;
    if (page.newest) showExperts(page.newest.experts.counts, page.newest.uptime_s);
  };
  apply(
    themes.includes(kept.get("localStorage", "tandem-theme")) ? kept.get("localStorage", "tandem-theme") : "system",
  );
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf($("theme").dataset.theme) + 1) % themes.length];
    kept.set("localStorage", "tandem-theme", next);
    apply(next);
  });
  $("pause").addEventListener("click", () => {
    page.paused = !page.paused;
    $("pause").setAttribute("aria-pressed", String(page.paused));
    $("pause").textContent = page.paused ? "Go on" : "Pause";
    if (page.paused) {
      page.stream?.abort();
      tell("waiting", "paused");
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) page.stream?.abort();
  });
  $("key").addEventListener("click", askForKey);
  $("key-dialog").addEventListener("close", () => {
    if ($("key-dialog").returnValue !== "use") return;
    key.value = $("key-value").value.trim();
    kept.set("sessionStorage", "tandem-key", key.value);
    key.changed?.();
    learnProps();
  });
  const choices = (selector, options, choose) => {
    const group = document.querySelector(selector);
    group.append(
      ...options.map(([name, value, chosen]) => {
        const button = element("button", { type: "button", "aria-pressed": String(Boolean(chosen)) }, name);
        button.addEventListener("click", () => {
          for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
          choose(value);
          if (page.newest) show(page.newest);
        });
        return button;
      }),
    );
  };
  choices(
    "#timeline [role=group]",
    [
      ["whole", 1, true],
      ["4 ×", 4],
      ["16 ×", 16],
    ],
    (zoom) => {
      view.zoom = zoom;
    },
  );
  choices(
    "#experts [role=group]",
    [
      ["since the start", false, true],
      ["last 10 s", true],
    ],
    (recent) => {
      view.recent = recent;
      view.experts = {};
    },
  );
  window.addEventListener("resize", () => {
    if (page.newest) show(page.newest);
  });
}

setUpButtons();
setUpChat();
learnProps();
listen();
