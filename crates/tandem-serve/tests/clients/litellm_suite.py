"""LiteLLM against the server at argv[1]. Prints how many checks passed."""

import os
import sys

# No list of prices is fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

URL, MODEL, KEY = sys.argv[1:4]
litellm.telemetry = False
litellm.drop_params = False
STORY = [{"role": "user", "content": "Tell me a story about a cat."}]
OPTIONS = {"model": "openai/" + MODEL, "api_base": URL + "/v1", "api_key": KEY, "max_tokens": 8, "temperature": 0,
           "num_retries": 0}

answer = litellm.completion(messages=STORY, **OPTIONS)
text = answer.choices[0].message.content
assert text and answer.usage.completion_tokens == 8 and answer.choices[0].finish_reason == "length"

pieces = litellm.completion(messages=STORY, stream=True, stream_options={"include_usage": True}, **OPTIONS)
streamed, usage = "", None
for piece in pieces:
    if piece.choices:
        streamed += piece.choices[0].delta.content or ""
    usage = getattr(piece, "usage", None) or usage
assert streamed == text, (streamed, text)
assert usage.completion_tokens == 8, usage

tool = {"type": "function", "function": {"name": "now", "description": "tells the time"}}
called = litellm.completion(messages=STORY, tools=[tool], tool_choice="required", parallel_tool_calls=False,
                            **(OPTIONS | {"max_tokens": 60}))
assert called.choices[0].message.tool_calls[0].function.name == "now"

completed = litellm.text_completion(prompt="Once upon a time", **(OPTIONS | {"model": "text-completion-openai/" + MODEL}))
assert completed.choices[0].text

for wrong, error in [({"model": "openai/other"}, litellm.NotFoundError), ({"api_key": "x"}, litellm.AuthenticationError)]:
    try:
        litellm.completion(messages=STORY, **(OPTIONS | wrong))
    except error:
        continue
    raise AssertionError(f"{wrong} was not refused with {error}")
print(6)
