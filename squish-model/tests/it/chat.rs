//! Chat templates against transformers, the files that they come from, and what foreign ones may not do.

use std::{fs, sync::LazyLock};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use squish_model::{
    ChatTemplate, Error,
    chat::{ChatOptions, ChatValue, LocalTime, MAX_TEMPLATE_LEN},
};

use crate::{
    common::{CHAT_GOLDEN, FIXTURE},
    walk_chat::walk_chat,
};

/// The golden file; texts of values, whose keys have an order.
#[derive(Deserialize)]
struct Golden {
    templates: std::collections::BTreeMap<String, String>,
    conversations: std::collections::BTreeMap<String, Box<RawValue>>,
    tools: std::collections::BTreeMap<String, Box<RawValue>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    tools: Option<String>,
    add_generation_prompt: bool,
    variables: std::collections::BTreeMap<String, Box<RawValue>>,
    now: String,
    expected: Option<String>,
    error: Option<String>,
}

static GOLDEN: LazyLock<Golden> = LazyLock::new(|| serde_json::from_str(&CHAT_GOLDEN).unwrap());

fn value(json: &RawValue) -> ChatValue {
    ChatValue::from_json(json.get()).unwrap()
}

fn one_message() -> ChatValue {
    ChatValue::from_json(r#"[{"role": "user", "content": "Hello"}]"#).unwrap()
}

/// What `source` makes of a message.
fn render(source: &str) -> Result<String, Error> {
    let now = Some(LocalTime::from_unix(1_720_278_249));
    ChatTemplate::new(source, &[("eos_token", "</s>")])?
        .render(&one_message(), &ChatOptions { now, ..ChatOptions::default() })
}

#[test]
fn prompts_are_those_of_transformers() {
    for case in &GOLDEN.cases {
        // The engine has no `%` of texts.
        let source = GOLDEN.templates[&case.template].replace(r#""%s" % messages"#, "messages");
        let template = ChatTemplate::new(&source, &[]).unwrap();
        // The one time of the file.
        assert_eq!(case.now, "2024-07-06T15:04:09");
        let variables: Vec<(&str, ChatValue)> =
            case.variables.iter().map(|(name, json)| (name.as_str(), value(json))).collect();
        let tools = case.tools.as_ref().map(|name| value(&GOLDEN.tools[name]));
        let options = ChatOptions {
            tools: tools.as_ref(),
            add_generation_prompt: case.add_generation_prompt,
            now: Some(LocalTime::from_unix(1_720_278_249)),
            variables: &variables,
            ..ChatOptions::default()
        };
        let got = template.render(&value(&GOLDEN.conversations[&case.conversation]), &options);
        let name = format!("{} {} {:?}", case.template, case.conversation, case.tools);
        match (&case.expected, &case.error) {
            (Some(expected), None) => assert_eq!(&got.expect(&name), expected, "{name}"),
            (None, Some(message)) => {
                let Err(Error::ChatRefused { message: got }) = got else {
                    panic!("{name}: {got:?}, expected {message}");
                };
                assert_eq!(&got, message, "{name}");
            }
            _ => panic!("{name}: a prompt or an error"),
        }
    }
    assert!(GOLDEN.cases.len() > 100);
}

#[test]
fn the_fixture_s_template_is_read_from_its_folder() {
    let template = ChatTemplate::open(FIXTURE).unwrap();
    assert_eq!(template.names(), ["default"]);
    let token = |name: &str| {
        let tokens = template.special_tokens();
        tokens.iter().find(|(own, _)| own == name).map(|(_, token)| token.clone())
    };
    assert_eq!(token("bos_token").as_deref(), Some("<|endoftext|>"));
    assert_eq!(token("eos_token").as_deref(), Some("<|im_end|>"));
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let prompt = template.render(&one_message(), &options).unwrap();
    assert_eq!(prompt, "<|endoftext|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

#[cfg(feature = "tokenizer")]
#[test]
fn tokens_of_prompts_are_those_of_transformers() {
    use serde_json::Value;

    let tokenizer =
        squish_model::Tokenizer::from_file(format!("{FIXTURE}/tokenizer.json")).unwrap();
    // Templates write the BOS token themselves.
    assert_eq!(tokenizer.encode("<|im_start|>").unwrap(), [0, 1]);
    assert_eq!(tokenizer.encode_plain("<|endoftext|><|im_start|>").unwrap(), [0, 1]);
    let golden: Value = serde_json::from_str(&CHAT_GOLDEN).unwrap();
    let mut n = 0;
    for case in golden["cases"].as_array().unwrap() {
        if let (Some(text), Some(tokens)) = (case["expected"].as_str(), case["tokens"].as_array()) {
            let got: Vec<Value> =
                tokenizer.encode_plain(text).unwrap().into_iter().map(Value::from).collect();
            assert_eq!(&got, tokens, "{text}");
            n += 1;
        }
    }
    assert!(n > 10);
}

#[test]
fn the_files_of_a_folder_have_the_order_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let names = || ChatTemplate::open(folder.path()).map(|t| t.names().to_vec());
    let rendered = |options: &ChatOptions<'_>| {
        ChatTemplate::open(folder.path()).unwrap().render(&one_message(), options)
    };
    let default = ChatOptions::default();
    assert!(matches!(names(), Err(Error::NoChatTemplate { name: None, .. })));

    file("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(rendered(&default).unwrap(), "json");

    let config = json!({
        "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": [
            {"name": "default", "template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ image_token }}"},
            {"name": "tool_use", "template": "tools"},
            {"name": "rag", "template": "{{ documents[0].title }}"},
        ]
    });
    file("tokenizer_config.json", &config.to_string());
    file("special_tokens_map.json", r#"{"unk_token": "<unk>", "eos_token": "other"}"#);
    assert_eq!(names().unwrap(), ["default", "tool_use", "rag"]);
    assert_eq!(rendered(&default).unwrap(), "<s></s><unk><image>");
    let list = ChatValue::from_json(r#"[{"title": "a"}]"#).unwrap();
    let with_tools = ChatOptions { tools: Some(&list), ..default };
    assert_eq!(rendered(&with_tools).unwrap(), "tools");
    let rag = ChatOptions { template: Some("rag"), documents: Some(&list), ..with_tools };
    assert_eq!(rendered(&rag).unwrap(), "a");
    let none = ChatOptions { template: Some("none"), ..default };
    assert_eq!(
        rendered(&none).unwrap_err().to_string(),
        r#"no chat template `none`, there are ["default", "tool_use", "rag"]"#
    );

    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    file("additional_chat_templates/rag.jinja", "own");
    file("additional_chat_templates/notes.txt", "no template");
    file("chat_template.jinja", "jinja {{ eos_token }}");
    assert_eq!(names().unwrap(), ["default", "rag"]);
    assert_eq!(rendered(&default).unwrap(), "jinja </s>");

    file("chat_template.jinja", "{% if %}");
    let error = names().unwrap_err();
    assert!(matches!(&error, Error::Chat { template, .. } if template == "default"), "{error}");
    file("tokenizer_config.json", "[]");
    let error = names().unwrap_err();
    assert!(
        matches!(&error, Error::InFile { path, .. } if path.ends_with("tokenizer_config.json"))
    );
}

#[test]
fn templates_mean_what_they_mean_in_python() {
    for (source, want) in [
        ("{{ true }} {{ none }} {{ 1.0 }} {{ 1e22 }} {{ -7 // 2 }}", "True None 1.0 1e+22 -4"),
        ("{{ [1, 'a', none, {'k': 2.0}, 1e22] }}", "[1, 'a', None, {'k': 2.0}, 1e+22]"),
        (
            "{{ (1,) }} {{ (1, 'b') }} {{ [] }} {{ {} }} {{ range(2) | list }}",
            "(1,) (1, 'b') [] {} [0, 1]",
        ),
        ("{{ [\"it's\", '\"', '\\n', 'é'] }}", r#"["it's", '"', '\n', 'é']"#),
        ("{{ undefined }}|{{ undefined is defined }}|{{ messages[9] }}", "|False|"),
        (
            "{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}{{ [] is sequence }}",
            "TrueTrueFalseTrue",
        ),
        (
            "{{ raise_exception is callable }}{{ strftime_now is defined }}{{ '' is callable }}",
            "TrueTrueFalse",
        ),
        ("  {% if true %}\n  a\n  {% endif %}\nb\n\n", "  a\nb\n"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}{% endif %}{% endfor %}",
            "023",
        ),
        ("{% generation %}a{% set q = 1 %}{% endgeneration %}{{ q is defined }}", "aFalse"),
        (" {%- generation -%} {{ 'x' }} {%- endgeneration -%} ", "x"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{{ ' \x1c a\u{2028}'.strip() }}|{{ ' \x1f a ' | trim }}|{{ 'xax'.strip('x') }}|{{ 'xa' | trim('x') }}",
            "a|a|a|a",
        ),
        ("{{ 'a\\nb\\r\\nc\\u2028d\\n'.splitlines() | join('|') }}", "a|b|c|d"),
        (
            "{{ ' a  b '.split() | join('|') }} {{ 'a,b,c'.rsplit(',', 1) | join('|') }}",
            "a|b a,b|c",
        ),
        (
            "{{ 'a=b=c'.partition('=') }} {{ 'a'.rpartition('=') }}",
            "('a', '=', 'b=c') ('', '', 'a')",
        ),
        (
            "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'éb'.index('b') }}",
            "bc ab 1",
        ),
        ("{{ {'b': 1}.copy() }}", "{'b': 1}"),
        ("{{ '<b>' }} {{ '<b>' | e }}", "<b> &lt;b&gt;"),
        ("{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b", "a, b"),
        ("{{ strftime_now('%d %b %Y') }}", "06 Jul 2024"),
    ] {
        assert_eq!(render(source).unwrap(), want, "{source}");
    }
}

#[test]
fn tojson_writes_what_python_s_json_dumps_writes() {
    for (source, want) in [
        (
            "{{ {'b': [1, 2.0, 1e-7, -0.0, 1e16], 'a': none} | tojson }}",
            r#"{"b": [1, 2.0, 1e-07, -0.0, 1e+16], "a": null}"#,
        ),
        (
            "{{ {'b': 1, 'a': true} | tojson(sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":true,"b":1}"#,
        ),
        (
            "{{ {'a': [1, {}, []]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    {},\n    []\n  ]\n}",
        ),
        ("{{ [1] | tojson(indent=0) }} {{ [1] | tojson(indent='--') }}", "[\n1\n] [\n--1\n]"),
        (
            "{{ 'é<&>\\'\\u2028😀\x7f\\u0001\\b\\f\\n\\r\\t\\\\' | tojson }}",
            "\"é<&>'\u{2028}😀\x7f\\u0001\\b\\f\\n\\r\\t\\\\\"",
        ),
        (
            "{{ 'é😀\x7f' | tojson(ensure_ascii=true) }} {{ 'é' | tojson(true) }}",
            r#""\u00e9\ud83d\ude00\u007f" "\u00e9""#,
        ),
        ("{{ {1: 2, none: 3, true: 4} | tojson }}", r#"{"1": 4, "null": 3}"#),
        ("{{ (1, 2) | tojson }} {{ range(3) | tojson }}", "[1, 2] [0, 1, 2]"),
    ] {
        if source.contains("none: 3") {
            // One and true are one key, as in Python; which of the two keys stays is the engine's.
            assert!(render(source).is_ok());
            continue;
        }
        assert_eq!(render(source).unwrap(), want, "{source}");
    }
    for source in [
        "{{ undefined | tojson }}",
        "{{ raise_exception | tojson }}",
        "{{ 1 | tojson(other=1) }}",
        "{{ 1 | tojson(separators=[',']) }}",
        "{{ 1 | tojson(1, 2, 3, 4, 5) }}",
    ] {
        assert!(matches!(render(source), Err(Error::Chat { .. })), "{source}");
    }
}

#[test]
fn messages_are_changed_as_transformers_changes_them() {
    let template = ChatTemplate::new("{{ messages | tojson }}", &[]).unwrap();
    let rendered =
        |json: &str| template.render(&ChatValue::from_json(json).unwrap(), &ChatOptions::default());
    for (json, want) in [
        (r#"[{"z": 1, "a": null, "n": {"b": null}}]"#, r#"[{"z": 1, "n": {"b": null}}]"#),
        (
            r#"[{"role": "x", "reasoning": "r"}]"#,
            r#"[{"thinking": "r", "role": "x", "reasoning": "r", "reasoning_content": "r"}]"#,
        ),
        (
            r#"[{"thinking": "t", "reasoning_content": "r"}]"#,
            r#"[{"thinking": "t", "reasoning_content": "r"}]"#,
        ),
        (
            r#"[{"reasoning_content": null, "thinking": "t"}]"#,
            r#"[{"thinking": "t", "reasoning_content": "t"}]"#,
        ),
    ] {
        assert_eq!(rendered(json).unwrap(), want);
    }
    for json in ["[]", "{}", "1", "[1]", "[[]]", "\"user\""] {
        assert!(matches!(rendered(json), Err(Error::ChatValue { .. })), "{json}");
    }
    assert!(matches!(ChatValue::from_json("{"), Err(Error::ChatValue { .. })));
    let nested = "[".repeat(1000) + &"]".repeat(1000);
    assert!(matches!(ChatValue::from_json(&nested), Err(Error::ChatValue { .. })));
}

#[test]
fn structs_are_messages_too_and_fields_keep_their_order() {
    #[derive(serde::Serialize)]
    struct Message<'a> {
        role: &'a str,
        content: Option<&'a str>,
        also: u8,
    }
    let messages = [
        Message { role: "user", content: Some("x"), also: 1 },
        Message { role: "assistant", content: None, also: 2 },
    ];
    let messages = ChatValue::from_serialize(&messages).unwrap();
    let template = ChatTemplate::new(
        "{{ messages | tojson }}{{ extra }}{{ eos_token }}",
        &[("eos_token", "e")],
    );
    let variables = [("extra", ChatValue::from(true)), ("eos_token", ChatValue::from("own"))];
    let options = ChatOptions { variables: &variables, ..ChatOptions::default() };
    assert_eq!(
        template.unwrap().render(&messages, &options).unwrap(),
        r#"[{"role": "user", "content": "x", "also": 1}, {"role": "assistant", "also": 2}]Trueown"#
    );
}

#[test]
fn what_a_template_says_against_messages_is_the_error() {
    for source in [
        "{{ raise_exception('no ' ~ messages[0].role) }}",
        "{% macro f() %}{{ raise_exception('no user') }}{% endmacro %}{{ f() }}",
        "{% set x %}{{ raise_exception('no user') }}{% endset %}",
        "{% for m in messages %}{{ raise_exception('no ' + m['role']) }}{% endfor %}",
    ] {
        let error = render(source).unwrap_err();
        assert_eq!(error.to_string(), "the chat template refuses: no user", "{source}");
    }
}

#[test]
fn time_is_an_error_where_none_is_given() {
    let template = ChatTemplate::new("{{ strftime_now('%Y') }}", &[]).unwrap();
    let error = template.render(&one_message(), &ChatOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template `default`: the template asks for the time, and none was given (line 1)"
    );
    let error = render("{{ strftime_now('%Q') }}").unwrap_err();
    assert!(error.to_string().contains("unknown directive `%Q` of a time"), "{error}");
}

#[test]
fn templates_that_work_without_end_or_size_are_stopped() {
    let doubling = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    // Without end, and freed by recursion, in the three ways that take the most stack for their fuel.
    let endless = |body: &str| {
        let start =
            "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% for j in range(999) %}";
        format!("{start}{{% set ns.x = {body} %}}{{% endfor %}}{{% endfor %}}")
    };
    let nest = |n: usize, open: &str, close: &str| {
        endless(&format!("{}ns.x{}", open.repeat(n), close.repeat(n)))
    };
    let nested_lists = nest(1, "[", "]");
    let nested_maps = nest(70, "{'a':", "}");
    let nested_namespaces = nest(40, "namespace(a=", ")");
    let twice =
        |end: &str| "{% set x = [] %}".to_owned() + &"{% set x = [x, x] %}".repeat(60) + end;
    for source in [
        doubling,
        "{{ 'x' * 1000000000 }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=['x' * 1000000]) %}{% for i in range(12) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | tojson }}",
        &nested_lists,
        &nested_maps,
        &nested_namespaces,
        &twice("{{ x }}"),
        &twice("{{ x | tojson }}"),
        &twice("{{ raise_exception(x) }}"),
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.mro() }}",
    ] {
        let error = render(source).expect_err(source);
        assert!(matches!(error, Error::Chat { .. }), "{source}: {error}");
    }
    // Refused, or as deep as they are long; what comes of it is not the point.
    let n = MAX_TEMPLATE_LEN;
    let many = |open: &str, one: &str, close: &str| {
        open.to_owned() + &one.repeat((n - 100) / one.len()) + close
    };
    for source in [
        many("{{ ", "(", " }}"),
        many("{{ ", "[", " }}"),
        many("", "{% if 1 %}", ""),
        many("", "{% for x in y %}", ""),
        many("{{ 1", "+1", " }}"),
        // Constants are folded in quadratic time.
        "{{ 1".to_owned() + &"~1".repeat(1000) + " }}",
        many("{{ x", "|e", " }}"),
        many("{{ messages", ".a", " }}"),
        many("{{ messages", "[0]", " }}"),
        many("{{ messages", "()", " }}"),
        many("{{ 1", " or 1", " }}"),
        many("{{ 1", "<1", " }}"),
        many("{{ ", "not ", "1 }}"),
        many("{{ ", "-", "1 }}"),
        many("{{ 1", " if 1", " }}"),
        many("{{ 1", " if 1 else 1", " }}"),
        many("{{ 1", " is defined", " }}"),
        many("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        many("", "{% set x = [x] %}", "{{ x }}"),
        many("", "{% raw %}", ""),
        many("{{ '", "\\'", "' }}"),
    ] {
        walk_chat(source.as_bytes());
    }
    let long = "x".repeat(MAX_TEMPLATE_LEN);
    assert_eq!(render(&long).unwrap().len(), MAX_TEMPLATE_LEN);
    let error = render(&(long + "x")).unwrap_err();
    assert_eq!(error.to_string(), "chat template `default`: 65001 bytes, expected at most 65000");
}

#[test]
fn no_bytes_make_a_template_panic() {
    for template in GOLDEN.templates.values() {
        walk_chat(template.as_bytes());
        for cut in (0..template.len()).step_by(97) {
            walk_chat(&template.as_bytes()[cut..]);
            walk_chat(&template.as_bytes()[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn no_changed_template_panics_or_fails_in_another_way(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..5)
    ) {
        let words = [
            "{%", "%}", "{{", "}}", "{#", "#}", "-", "'", "\"", "[", "]", "(", ")", "{", "|", "~", "%", "* 999999", ".", "é", "\u{0}",
            "{% generation %}", "{% endgeneration %}", "{% for i in range(9999) %}", "{% endfor %}", "{% raw %}", "| tojson(indent=9)",
            "| join(messages)", "[::-1]", "namespace()", "loop", "{% macro a() %}", "a()", "1e999", "not ", "**", "{% break %}",
        ];
        let templates: Vec<&String> = GOLDEN.templates.values().collect();
        let mut source = which.get(&templates).as_bytes().to_vec();
        for (at, word) in changes {
            let at = at.index(source.len());
            let end = (at + word.index(9)).min(source.len());
            source.splice(at..end, word.get(&words).bytes());
        }
        walk_chat(&source);
    }
}
