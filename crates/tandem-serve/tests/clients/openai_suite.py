"""The official client against the server at argv[1]: each function is a check. Prints how many passed."""

import json
import sys

import openai

URL, MODEL, KEY = sys.argv[1:4]
client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120)
STORY = [{"role": "user", "content": "Tell me a story about a cat."}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "tells the weather", "parameters": {
        "type": "object", "required": ["city"], "additionalProperties": False,
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}},
    {"type": "function", "function": {"name": "now"}},
]


def chat(**options):
    options = {"model": MODEL, "messages": STORY, "max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(**options)


def complete(**options):
    options = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0} | options
    return client.completions.create(**options)


def refused(error, call, **options):
    try:
        call(**options)
    except error as e:
        return e
    raise AssertionError(f"{options} was not refused")


def models_are_listed():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    refused(openai.NotFoundError, client.models.retrieve, model="other")


def an_answer_comes_whole():
    answer = chat()
    choice, = answer.choices
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    usage = answer.usage
    assert usage.completion_tokens == 12 and usage.total_tokens == usage.prompt_tokens + 12
    assert chat().choices[0].message.content == choice.message.content
    # What has been read is not read again, but for what is left of a page.
    long = [{"role": "user", "content": "Tell me about a dog and a cat. " * 20}]
    assert chat(messages=long).usage.prompt_tokens_details.cached_tokens < 50
    again = chat(messages=long).usage
    assert again.prompt_tokens_details.cached_tokens > again.prompt_tokens - 50, again


def an_answer_comes_in_pieces():
    whole = chat().choices[0].message.content
    pieces = list(chat(stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1])
    assert text == whole, (text, whole)
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]][-1] == "length"
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == 12
    assert all(piece.usage is None for piece in pieces[:-1])
    assert len({piece.id for piece in pieces}) == 1
    without = list(chat(stream=True))
    assert all(piece.usage is None for piece in without) and all(piece.choices for piece in without)


def several_answers():
    answer = chat(n=3, temperature=1, seed=5)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3, texts
    assert answer.usage.completion_tokens == sum([12] * 3)
    again = chat(n=3, temperature=1, seed=5, stream=True)
    streamed = ["", "", ""]
    for piece in again:
        streamed[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert streamed == texts, (streamed, texts)
    assert chat(temperature=1, seed=6).choices[0].message.content == texts[1]


def stop_strings_end_the_text():
    whole = complete(max_tokens=40).choices[0].text
    word = whole.split()[4]
    for stop in [word, ["never said", word]]:
        choice = complete(max_tokens=40, stop=stop).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.text == whole[: whole.index(word)], (choice.text, whole)
        pieces = complete(max_tokens=40, stop=stop, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == choice.text


def max_completion_tokens():
    assert chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens == 3


def logprobs_of_chat():
    content = chat(logprobs=True, top_logprobs=4).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        top = [entry.logprob for entry in token.top_logprobs]
        assert len(top) == 4 and top == sorted(top, reverse=True)
        # Greedy: the chosen one is the likeliest.
        assert token.logprob == top[0] <= 0 and token.token == token.top_logprobs[0].token
        assert bytes(token.bytes).decode(errors="replace") == token.token
    streamed = chat(logprobs=True, top_logprobs=4, stream=True)
    flat = [t for piece in streamed for c in piece.choices if c.logprobs for t in c.logprobs.content]
    assert [t.token for t in flat] == [t.token for t in content]
    assert all(abs(a.logprob - b.logprob) < 0.05 for a, b in zip(flat, content))
    assert chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat().choices[0].logprobs is None


def logprobs_of_completions():
    choice = complete(logprobs=2).choices[0]
    columns = choice.logprobs
    assert "".join(columns.tokens) == choice.text
    assert columns.text_offset == [len("".join(columns.tokens[:n])) for n in range(12)]
    assert all(top[token] == logprob == max(top.values()) for token, logprob, top
               in zip(columns.tokens, columns.token_logprobs, columns.top_logprobs))


def bias_and_penalties():
    plain = chat(logprobs=True).choices[0].logprobs.content
    first = client.post(URL + "/tokenize", body={"content": plain[0].token}, cast_to=object)["tokens"]
    banned = chat(logit_bias={str(first[-1]): -100}).choices[0].message.content
    assert not banned.startswith(plain[0].token), banned
    forced = complete(logit_bias={str(first[-1]): 100}, max_tokens=3).choices[0].text
    assert forced.strip() and len(set(forced.split())) == 1, forced
    # With a penalty for what has been said, a forced word does not go on for ever.
    freed = complete(logit_bias={str(first[-1]): 10}, frequency_penalty=2, max_tokens=40).choices[0].text
    assert len(set(freed.split())) > 2, freed
    assert complete(presence_penalty=2, max_tokens=60).choices[0].text != complete(max_tokens=60).choices[0].text


def sampling():
    # Only the likeliest token is left, however hot.
    greedy = complete().choices[0].text
    assert complete(temperature=2, top_p=0).choices[0].text == greedy
    assert complete(temperature=2, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(temperature=2, extra_body={"min_p": 1.0}).choices[0].text == greedy
    assert complete(temperature=1, seed=1).choices[0].text == complete(temperature=1, seed=1).choices[0].text


def several_prompts_and_echo():
    answer = complete(prompt=["Once upon a time", "The dog"], n=2, echo=True, temperature=1)
    texts = [choice.text for choice in answer.choices]
    assert all(text.startswith("Once upon a time") for text in texts[:2]), texts
    assert all(text.startswith("The dog") for text in texts[2:]), texts
    ids = client.post(URL + "/tokenize", body={"content": "Once upon a time"}, cast_to=object)["tokens"]
    assert complete(prompt=ids).choices[0].text == complete().choices[0].text
    assert len(complete(prompt=[ids, ids[:2]]).choices) == 2
    assert client.post(URL + "/detokenize", body={"tokens": ids}, cast_to=object)["content"] == "Once upon a time"
    assert complete(prompt="Once", echo=True, max_tokens=0).choices[0].text == "Once"


def a_json_object():
    # The model is no writer of JSON: it may not come to an end, but what it writes begins as an object.
    answer = chat(response_format={"type": "json_object"}, max_tokens=60, temperature=1)
    text = answer.choices[0].message.content
    assert text.startswith("{"), text
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def a_json_schema():
    schema = {"type": "object", "additionalProperties": False, "required": ["name", "legs"], "properties": {
        "name": {"type": "string", "maxLength": 10}, "legs": {"enum": [2, 4, 8]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": schema}}
    for seed in range(5):
        options = {"response_format": wanted, "max_tokens": 100, "temperature": 1, "seed": seed}
        answer = json.loads(chat(**options).choices[0].message.content)
        assert set(answer) == {"name", "legs"} and answer["legs"] in (2, 4, 8), answer
        pieces = chat(stream=True, **options)
        assert json.loads("".join(p.choices[0].delta.content or "" for p in pieces)) == answer
    bad = wanted | {"json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    error = refused(openai.BadRequestError, chat, response_format=bad)
    assert "response_format" in error.param, error


def tools_are_called():
    ask = [{"role": "user", "content": "Weather in Rome?"}]
    for seed in range(3):
        options = {"messages": ask, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False,
                   "max_tokens": 80, "temperature": 1, "seed": seed}
        choice = chat(**options).choices[0]
        call, = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        check_call(call.function)
        name, arguments = None, ""
        for piece in chat(stream=True, **options):
            for delta in piece.choices[0].delta.tool_calls or []:
                assert delta.index == 0
                name = name or delta.function.name
                arguments += delta.function.arguments or ""
        assert (name, arguments) == (call.function.name, call.function.arguments)
    named = {"type": "function", "function": {"name": "now"}}
    call, = chat(messages=ask, tools=TOOLS, tool_choice=named, max_tokens=60).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})
    # The answer of the tool goes back.
    turns = ask + [{"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
                   {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    assert chat(messages=turns).choices[0].message.content
    answer = chat(messages=ask, tools=TOOLS, tool_choice="none").choices[0]
    assert answer.message.tool_calls is None and answer.finish_reason == "length"
    auto = chat(messages=ask, tools=TOOLS).choices[0].message
    assert auto.tool_calls or auto.content


def check_call(function):
    arguments = json.loads(function.arguments)
    if function.name == "now":
        assert arguments == {}
    else:
        assert function.name == "weather" and len(arguments["city"]) <= 12, arguments
        assert set(arguments) <= {"city", "days"} and 1 <= arguments.get("days", 1) <= 9, arguments


def errors_say_what_is_wrong():
    def param(**options):
        return refused(openai.BadRequestError, chat, **options).param

    assert param(temperature=3) == "temperature"
    assert param(top_p=-1) == "top_p"
    assert param(n=0) == "n" and param(n=17) == "n"
    assert param(max_tokens=0) == "max_tokens"
    assert param(presence_penalty=2.1) == "presence_penalty"
    assert param(logprobs=True, top_logprobs=21) == "top_logprobs" == param(top_logprobs=1)
    assert param(logit_bias={"99999999": 1}) == "logit_bias.99999999"
    assert param(logit_bias={"1": 101}) == "logit_bias.1"
    assert param(stop=["x"] * 17) == "stop" == param(stop="")
    assert param(messages=[]) == "messages"
    assert param(messages=[{"role": "nobody", "content": "x"}]) == "messages[0].role"
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert "messages[0].content" in param(messages=[{"role": "user", "content": picture}])
    assert param(extra_body={"unheard_of": 1}) == "unheard_of"
    assert param(tool_choice="required") == "tool_choice"
    error = refused(openai.BadRequestError, chat, messages=[{"role": "user", "content": "word " * 2000}])
    assert error.code == "context_length_exceeded", error.code
    refused(openai.NotFoundError, chat, model="gpt-4")
    assert refused(openai.BadRequestError, complete, suffix="end").param == "suffix"
    assert refused(openai.BadRequestError, complete, prompt="").param == "prompt"
    assert refused(openai.BadRequestError, complete, prompt=[10**7]).param == "prompt"
    assert refused(openai.BadRequestError, complete, echo=True, logprobs=1).param == "echo"
    wrong = openai.OpenAI(base_url=URL + "/v1", api_key="wrong", max_retries=0)
    assert refused(openai.AuthenticationError, wrong.models.list).code == "invalid_api_key"


CHECKS = [check for name, check in list(globals().items())
          if callable(check) and getattr(check, "__module__", "") == "__main__"
          and name not in {"chat", "complete", "refused", "check_call"}]
for check in CHECKS:
    try:
        check()
    except BaseException as e:
        raise SystemExit(f"{check.__name__}: {type(e).__name__}: {e}") from e
print(len(CHECKS))
