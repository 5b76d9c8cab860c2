//! `squish generate`.

use crate::common::{FIXTURE, json, squish, stdout};

#[test]
fn a_folder_is_argument_enough() {
    assert!(!stdout(&["generate", FIXTURE]).trim().is_empty());
}

#[test]
fn greedy_texts_are_the_same_for_any_threads_and_end_in_a_newline() {
    let args = |threads| {
        [
            "generate",
            FIXTURE,
            "--prompt",
            "pub fn push(",
            "--greedy",
            "-n",
            "24",
            "--threads",
            threads,
        ]
    };
    let one = stdout(&args("1"));
    assert_eq!(one, stdout(&args("2")));
    assert!(one.ends_with('\n') && one.len() > 20, "{one:?}");
}

#[test]
fn a_seed_gives_the_same_text_and_another_seed_another() {
    let text = |seed| {
        let args =
            ["generate", FIXTURE, "-p", "The", "-n", "40", "--temperature", "1", "--seed", seed];
        json(&args)["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn a_chat_is_written_by_the_model_s_template_and_ends_by_its_token() {
    let report = json(&[
        "generate",
        FIXTURE,
        "--chat",
        "What is the weather in Paris?",
        "--greedy",
        "--system",
        "You can call tools.",
    ]);
    // <|endoftext|><|im_start|>system ... assistant: more tokens than the message has.
    assert!(report["prompt_tokens"].as_u64().unwrap() > 20, "{report}");
    assert_eq!(report["finish"], "eos", "{report}");
    assert!(!report["text"].as_str().unwrap().contains("<|im_end|>"), "{report}");
}

#[test]
fn a_stop_string_ends_the_text_and_is_not_in_it() {
    let args = ["generate", FIXTURE, "-p", "pub fn push(", "--greedy", "-n", "24"];
    let whole = json(&args)["text"].as_str().unwrap().to_owned();
    let stop = &whole[4..7];
    let cut = json(&[&args[..], &["--stop", stop]].concat());
    assert_eq!(cut["finish"], "stop");
    assert_eq!(cut["text"].as_str().unwrap(), &whole[..whole.find(stop).unwrap()]);
}

#[test]
fn a_stream_says_how_fast_it_came_on_the_error_stream() {
    let output = squish(&["generate", FIXTURE, "-p", "The", "-n", "8"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("first token after") && stderr.contains("tokens/s"), "{stderr}");
}

#[test]
fn every_format_and_type_generates() {
    for weights in ["f32", "bf16", "f16", "fp8-e4m3", "fp8-e5m2", "mxfp4", "int8", "int4"] {
        let report = json(&["generate", FIXTURE, "-n", "4", "--weights", weights, "--kv", "int8"]);
        assert_eq!(report["tokens"], 4, "{weights}");
    }
    assert_eq!(json(&["generate", FIXTURE, "-n", "4", "--exact"])["tokens"], 4);
}
