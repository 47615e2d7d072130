//! Chat templates against Python's jinja2, set up as the `transformers` library sets it up.

mod support;

use serde_json::{Value, json};
use support::ask_python;
use tandem_model::chat::{ChatTemplate, Message};
use tandem_model::tokenizer::TokenizerConfig;
use tandem_testkit::testdata;

const CHATML: &str = "{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const MISTRAL: &str = "{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content']|trim + eos_token}}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}";

const NAMESPACE: &str = "{%- set ns = namespace(found=false, count=0, last='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.found = true -%}{%- continue -%}{%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set ns.last = message.content.strip() -%}
    {%- if ns.count > 2 -%}{%- break -%}{%- endif -%}
    [{{ loop.index }}/{{ loop.length }}|{{ message.role.upper() }}|{{ ns.last.split('\\n')[-1] }}|{{ ns.last.lstrip('<').rstrip() }}]
{%- endfor -%}
{{ ns.found }} {{ ns.count }} {{ ns.last|length }} {{ ns.last.startswith('H') }} {{ none }} {{ tools is none }}
{{- ' gen' if add_generation_prompt else ' end' }}";

const BLOCKS: &str = "start
  {% for message in messages %}
    {% if message.content %}
    {{ message.role | capitalize }}: {{ message['content'] | replace('\\n', ' / ') }}
    {% endif %}
  {% else %}
    nobody
  {% endfor %}
{# a comment #}
{%- macro wrap(text, mark='*') -%}{{ mark ~ text ~ mark }}{%- endmacro %}
{{ wrap('end') }} {{ wrap(messages | length, mark='#') }} {{ undefined_variable }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
";

const JSON: &str = "{% for message in messages %}{{ message | tojson }}
{{ message.content | tojson(indent=2) }} {{ {'b': [1, 2.5, true, none], 'a': {}, 'é<&\\'': []} | tojson(indent=4) }}
{{ [message.role, 1] | tojson }}{% endfor %}";

/// What the template renders to, or `None` where it raises an exception.
fn rendered_by_jinja2(cases: &Value) -> Vec<Option<String>> {
    let script = r#"
import json, sys
from datetime import datetime
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

def raise_exception(message):
    raise TemplateError(message)

def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)

def render(case):
    tokens = {k: case[k] for k in ("bos_token", "eos_token") if case[k] is not None}
    try:
        return environment.from_string(case["template"]).render(
            messages=[{k: m[k] for k in ("role", "content")} for m in case["messages"]], tools=None, documents=None,
            add_generation_prompt=case["add_generation_prompt"], **tokens)
    except TemplateError:
        return None

print(json.dumps([render(case) for case in json.load(open(sys.argv[1], encoding="utf-8"))]))
"#;
    ask_python(script, cases)
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn conversations() -> Vec<Vec<Message>> {
    let odd = "  \"quoted\" 'single' \\n & <b>\n\n日本語 🙂\t{{ not a template }} {% nor this %}\n";
    vec![
        vec![],
        vec![message("user", "Hi")],
        vec![message("system", "Be brief."), message("user", "Hello\nthere")],
        vec![message("user", odd), message("assistant", odd), message("user", "")],
        vec![
            message("system", odd),
            message("user", "a"),
            message("assistant", "b\n"),
            message("user", "<<c"),
        ],
        vec![message("assistant", "first"), message("tool", "second")],
    ]
}

fn phi() -> TokenizerConfig {
    let path = testdata("phi-tiny-moe/tokenizer_config.json");
    TokenizerConfig::from_json_bytes(&path, &std::fs::read(&path).unwrap()).unwrap()
}

#[test]
fn rendered_texts_are_those_of_jinja2() {
    let phi = phi().chat_template.unwrap();
    let mut cases = Vec::new();
    let mut ours = Vec::new();
    for template in [&phi, CHATML, LLAMA3, MISTRAL, NAMESPACE, BLOCKS, JSON] {
        for (bos, eos) in [(Some("<s>"), Some("</s>")), (Some("<s>"), None)] {
            let compiled = ChatTemplate::new(template, bos, eos).unwrap();
            for messages in conversations() {
                for add_generation_prompt in [false, true] {
                    ours.push(compiled.render(&messages, add_generation_prompt).ok());
                    cases.push(json!({
                        "template": template, "messages": messages, "bos_token": bos, "eos_token": eos,
                        "add_generation_prompt": add_generation_prompt,
                    }));
                }
            }
        }
    }
    let theirs = rendered_by_jinja2(&Value::from(cases.clone()));
    assert!(theirs.iter().any(Option::is_none), "some template refuses some conversation");
    for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        assert_eq!(ours, theirs, "{case:#}");
    }
}

#[test]
fn the_template_of_phi_makes_the_prompt_of_the_reference() {
    let template = phi().compile_chat_template().unwrap().unwrap();
    let messages = [message("user", "Hi")];
    assert_eq!(template.render(&messages, true).unwrap(), "<|user|>\nHi<|end|>\n<|assistant|>\n");
    assert_eq!(template.render(&messages, false).unwrap(), "<|user|>\nHi<|end|>\n<|endoftext|>");
}

#[test]
fn dates_are_todays() {
    let source = "{{ strftime_now('%d %b %Y') }}";
    let case = json!([{
        "template": source, "messages": [], "bos_token": null, "eos_token": null, "add_generation_prompt": false,
    }]);
    let template = ChatTemplate::new(source, None, None).unwrap();
    let ours = || template.render(&[], false).unwrap();
    let (before, theirs, after) = (ours(), rendered_by_jinja2(&case), ours());
    // Midnight may pass in between.
    assert!(theirs == [Some(before)] || theirs == [Some(after)]);
}

#[test]
fn a_template_that_fails_or_refuses_says_so_in_one_line() {
    let error = |source: &str| {
        let rendered = ChatTemplate::new(source, None, None)
            .and_then(|t| t.render(&[message("user", "Hi")], true));
        let error = rendered.unwrap_err().to_string();
        assert!(error.starts_with("chat template: ") && !error.contains('\n'), "{error}");
        error
    };
    assert!(
        error("{{ raise_exception('roles must\nalternate') }}").contains("roles must alternate")
    );
    assert!(error("a\nb\n{% for %}").contains("chat_template:3"));
    assert!(error("{{ messages[0].content.nothing.more }}").contains("undefined value"));
    assert!(error("{{ no_such_function() }}").contains("no_such_function"));
    assert!(error("{{ strftime_now('%Q%') }}").contains("strftime_now"));
    assert!(error("{{ 1 | tojson(sort_keys=true) }}").contains("sort_keys"));
    assert!(error("{% include '/etc/passwd' %}").contains("template not found"));
}

/// Each of these would take hours or all memory.
#[test]
fn a_hostile_template_is_stopped() {
    for source in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'a' * 100000000000 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(18) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{% for i in range(100000) %}{% set y = ns.x | tojson %}{% endfor %}",
        "{% for i in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{{ ('a,' * 100000).split(',') | map('upper') | map('replace', 'A', 'b' * 100000) | join }}",
    ] {
        let template = ChatTemplate::new(source, None, None).unwrap();
        let error = template.render(&[message("user", "Hi")], true).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
    for source in [
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns | tojson }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ raise_exception(ns) }}",
        "{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ] {
        let template = ChatTemplate::new(source, None, None).unwrap();
        let error = template.render(&[message("user", "Hi")], true).unwrap_err().to_string();
        assert!(error.contains("nests too deeply"), "{error}");
    }
    let nested = "(".repeat(100_000);
    assert!(ChatTemplate::new(&format!("{{{{ {nested} }}}}"), None, None).is_err());
}
