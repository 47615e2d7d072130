"""Random JSON schemas: the server at argv[1] must answer each with JSON that `jsonschema` finds valid. Prints how many."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import openai

URL, MODEL, KEY, COUNT = sys.argv[1:5]
client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=300)
WORDS = ["red", "Green", "ü", "a b", "x\"y", "c\\d", "", "∑1", "long word here"]


def scalar(rng):
    low, high = sorted((rng.randint(-1000, 1000), rng.randint(-1000, 1000)))
    return rng.choice([
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"type": "integer", "minimum": low, "maximum": high},
        lambda: {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
        lambda: {"type": "number", "minimum": low, "maximum": high, "multipleOf": 0.5},
        lambda: {"enum": rng.sample(WORDS, 3) + [rng.randint(0, 9), None, True]},
        lambda: {"const": rng.choice([*WORDS, 1.5, [1, "a"], {"k": None}])},
        lambda: {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 8)},
        lambda: {"type": "string", "pattern": rng.choice([r"^[a-f]{2,4}$", r"^\d{3}-\d{2}$", r"^(ja|nein)$"])},
        lambda: {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])},
        lambda: {"type": ["boolean", "null"]},
    ])()


def schema(rng, depth):
    if depth == 0 or rng.random() < 0.3:
        return scalar(rng)
    return rng.choice([
        lambda: {"type": "array", "items": schema(rng, depth - 1), "minItems": rng.randint(0, 2), "maxItems": 2},
        lambda: {"type": "array", "prefixItems": [schema(rng, depth - 1), scalar(rng)], "items": False, "minItems": 2},
        lambda: {"anyOf": [schema(rng, depth - 1), scalar(rng)]},
        lambda: record(rng, depth),
        lambda: record(rng, depth),
    ])()


def record(rng, depth):
    names = rng.sample(["id", "name", "ä ö", "tags", "a-b", "x\"", "nested"], rng.randint(0, 3))
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: schema(rng, depth - 1) for name in names}
    made = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if rng.random() < 0.2:
        properties["link"] = {"$ref": "#/$defs/shared"}
    return made


def ask(number):
    rng = random.Random(number)
    wanted = record(rng, 2) | {"$defs": {"shared": scalar(rng)}}
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Data."}], seed=number, temperature=1.0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": wanted}})
    choice = answer.choices[0]
    assert choice.finish_reason == "stop", (number, wanted, choice)
    try:
        value = json.loads(choice.message.content)
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(value, wanted, jsonschema.Draft202012Validator, format_checker=checker)
    except Exception as e:
        raise SystemExit(f"schema {number}: {e}\n{json.dumps(wanted)}\n{choice.message.content}") from e
    return choice.message.content


with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(ask, range(int(COUNT))))
print(len(answers), len(set(answers)))
