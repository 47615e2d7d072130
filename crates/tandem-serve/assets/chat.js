// The chat. What the model writes is set as text.

const chat = { messages: [], running: null, template: true };

function bubble(role, text) {
  $("log-empty")?.remove();
  const body = element("div", {}, text),
    node = element(
      "div",
      { class: `message ${role}` },
      element("span", { class: "hidden" }, role === "user" ? "You: " : "Tandem: "),
      body,
    );
  $("log").append(node);
  $("log").scrollTop = $("log").scrollHeight;
  return { node, body };
}

/** What is sent: a conversation, or for models without a chat template the bare text. */
function request() {
  const common = {
    model: page.model,
    max_tokens: Number($("max-tokens").value) || 512,
    temperature: Number($("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (!chat.template)
    return ["/v1/completions", { ...common, prompt: chat.messages[chat.messages.length - 1].content }];
  const system = $("system").value.trim();
  return [
    "/v1/chat/completions",
    { ...common, messages: [...(system ? [{ role: "system", content: system }] : []), ...chat.messages] },
  ];
}

async function send(text) {
  chat.messages.push({ role: "user", content: text });
  bubble("user", text);
  const { node, body } = bubble("assistant", ""),
    log = $("log");
  const abort = new AbortController(),
    begun = performance.now();
  let answer = "",
    first = null,
    usage = null,
    finish = null,
    failure = null,
    ended = false;
  chat.running = abort;
  $("send").disabled = true;
  $("stop").disabled = false;
  log.setAttribute("aria-busy", "true");
  try {
    const [path, content] = request();
    await events(await ask(path, { method: "POST", body: JSON.stringify(content), signal: abort.signal }), (data) => {
      if (data === "[DONE]") {
        ended = true;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0],
        piece = choice?.delta?.content ?? choice?.text ?? "";
      finish = choice?.finish_reason ?? finish;
      if (!piece) return;
      first ??= performance.now();
      answer += piece;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      body.textContent = answer;
      if (atEnd) log.scrollTop = log.scrollHeight;
    });
    if (!ended) failure = "the connection ended before the answer did";
  } catch (error) {
    failure = abort.signal.aborted ? "stopped" : error.message;
    if (error.status === 401) askForKey();
  }
  log.setAttribute("aria-busy", "false");
  chat.running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  const seconds = first === null ? 0 : (performance.now() - first) / 1000,
    written = usage?.completion_tokens;
  const rate = written > 1 && seconds > 0 ? `, ${figure((written - 1) / seconds)} tokens/s` : "";
  const notes = [
    written !== undefined ? `${written} tokens${rate}` : null,
    first !== null ? `first after ${figure((first - begun) / 1000)} s` : null,
    finish === "length" ? "cut at the longest answer" : null,
    failure,
  ];
  node.append(element("footer", {}, notes.filter(Boolean).join("; ")));
  if (failure && failure !== "stopped") node.classList.add("failed");
  // What was not answered is not part of the conversation.
  if (answer) chat.messages.push({ role: "assistant", content: answer });
  else chat.messages.pop();
  log.scrollTop = log.scrollHeight;
}

function setUpChat() {
  const prompt = $("prompt");
  $("chat").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = prompt.value;
    if (chat.running || !text.trim()) return;
    prompt.value = "";
    send(text);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("chat").requestSubmit();
    }
  });
  $("stop").addEventListener("click", () => chat.running?.abort());
  $("new-chat").addEventListener("click", () => {
    chat.running?.abort();
    chat.messages = [];
    $("log").replaceChildren(
      element("p", { class: "empty", id: "log-empty" }, "Ask something. Nothing leaves this computer."),
    );
    prompt.focus();
  });
}
