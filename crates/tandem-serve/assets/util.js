// What the other parts use. Text from the server or the model is only ever set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (elements, or texts). */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The same, of an SVG. */
function graphic(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A number as a person wants it; a dash where there is none. */
function figure(value, digits) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const places = digits ?? (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
  return value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

function duration(seconds) {
  const s = Math.floor(seconds),
    two = (n) => String(n).padStart(2, "0");
  return s < 3600
    ? `${Math.floor(s / 60)}:${two(s % 60)}`
    : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

/** Reads and writes what the browser keeps; a browser that keeps nothing is no error. */
const kept = {
  get(store, name) {
    try {
      return window[store].getItem(name);
    } catch {
      return null;
    }
  },
  set(store, name, value) {
    try {
      window[store].setItem(name, value);
    } catch {
      /* nothing is kept */
    }
  },
};

/** The key that every request sends, where there is one. */
const key = { value: kept.get("sessionStorage", "tandem-key") || "" };

/** Asks the server. A refusal is thrown with what the server says of it. */
async function ask(path, options = {}) {
  const headers = {
    ...(options.body ? { "Content-Type": "application/json" } : {}),
    ...(key.value ? { Authorization: `Bearer ${key.value}` } : {}),
  };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw Object.assign(new Error(said?.error?.message ?? `the server answers ${answer.status}`), {
    status: answer.status,
  });
}

/** Calls `each` with the data of every server-sent event until the stream ends. */
async function events(answer, each) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "",
    data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        each(data.join("\n"));
        data = [];
      }
    }
  }
}
