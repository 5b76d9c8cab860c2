//! Generation configurations: files, defaults, and who wins.

use std::fs;

use squish_model::{Error, GenerationConfig, Sampling, SamplingOverrides};

use crate::common::FIXTURE;

fn config(json: &str) -> GenerationConfig {
    GenerationConfig::from_json(json.as_bytes()).unwrap()
}

#[test]
fn the_fixture_s_configuration_is_read() {
    let config = GenerationConfig::open(FIXTURE).unwrap();
    assert_eq!(config.eos_token_ids, [0, 2]);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(0), Some(5)));
    let want = Sampling { temperature: 0.7, top_k: 50, top_p: 0.95, ..Sampling::default() };
    assert_eq!(config.sampling(), want);
}

#[test]
fn nothing_said_is_greedy_and_sampling_has_a_top_k_of_fifty() {
    let nothing = config("{}");
    assert_eq!(nothing, GenerationConfig::default());
    assert!(nothing.sampling().is_greedy());
    assert!(config(r#"{"temperature": 0.7, "top_k": 3}"#).sampling().is_greedy());
    assert!(config(r#"{"do_sample": false, "temperature": 0.7}"#).sampling().is_greedy());
    let drawn = config(r#"{"do_sample": true}"#).sampling();
    assert_eq!(drawn, Sampling { top_k: 50, ..Sampling::default() });
    let all = r#"{"do_sample": true, "temperature": 1.5, "top_k": 0, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2,
        "max_new_tokens": 7, "max_length": 9, "transformers_version": "5.23.0", "num_beams": 1}"#;
    let all = config(all);
    assert_eq!((all.max_new_tokens, all.max_length), (Some(7), Some(9)));
    let want = Sampling {
        temperature: 1.5,
        top_k: 0,
        top_p: 0.8,
        min_p: 0.1,
        repetition_penalty: 1.2,
        ..Sampling::default()
    };
    assert_eq!(all.sampling(), want);
    // A penalty is one of greedy decoding, too.
    assert_eq!(config(r#"{"repetition_penalty": 1.2}"#).sampling().repetition_penalty, 1.2);
}

#[test]
fn the_caller_comes_before_the_file() {
    let file = config(
        r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.2}"#,
    );
    let own = SamplingOverrides {
        repetition_penalty: Some(1.0),
        presence_penalty: Some(0.5),
        frequency_penalty: Some(0.25),
        temperature: Some(0.9),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
    };
    let want = Sampling {
        temperature: 0.9,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..Sampling::default()
    };
    assert_eq!(file.sampling_with(own), want);
    assert_eq!(file.sampling_with(SamplingOverrides::default()), file.sampling());
    let temperature = |temperature| SamplingOverrides {
        temperature: Some(temperature),
        ..SamplingOverrides::default()
    };
    assert!(file.sampling_with(temperature(0.0)).is_greedy());
    // Drawing by a model that does not want it, as `generate(do_sample=True)` would.
    let greedy = config(r#"{"do_sample": false, "top_p": 0.5}"#).sampling_with(temperature(1.0));
    assert_eq!(greedy, Sampling { top_k: 50, top_p: 0.5, ..Sampling::default() });
}

#[test]
fn token_ids_are_numbers_or_lists_and_come_from_either_file() {
    assert_eq!(config(r#"{"eos_token_id": 7}"#).eos_token_ids, [7]);
    assert_eq!(config(r#"{"eos_token_id": [7, 8]}"#).eos_token_ids, [7, 8]);
    assert_eq!(
        config(r#"{"eos_token_id": null, "pad_token_id": -1}"#),
        GenerationConfig::default()
    );

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let open = || GenerationConfig::open(folder.path());
    assert_eq!(open().unwrap(), GenerationConfig::default());
    file(
        "config.json",
        r#"{"eos_token_id": 3, "bos_token_id": 1, "pad_token_id": 4, "temperature": 0.5, "hidden_size": 8}"#,
    );
    let only_model = open().unwrap();
    assert_eq!(only_model.eos_token_ids, [3]);
    // Old configurations of models have options of sampling, which do not count.
    assert_eq!((only_model.bos_token_id, only_model.temperature), (Some(1), None));
    file(
        "generation_config.json",
        r#"{"eos_token_id": [5, 6], "bos_token_id": 2, "do_sample": true}"#,
    );
    let both = open().unwrap();
    assert_eq!(both.eos_token_ids, [5, 6]);
    assert_eq!((both.bos_token_id, both.pad_token_id), (Some(2), Some(4)));
}

#[test]
fn what_is_no_configuration_is_an_error_with_file_and_reason() {
    for (json, message) in [
        ("", "no configuration: EOF while parsing a value at line 1 column 0"),
        (
            r#"{"top_k": -1}"#,
            "no configuration: invalid value: integer `-1`, expected usize at line 1 column 12",
        ),
        (
            r#"{"eos_token_id": 4294967296}"#,
            "`eos_token_id` is 4294967296, expected a token id below 2^32",
        ),
    ] {
        let error = GenerationConfig::from_json(json.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    for json in
        [r#"{"eos_token_id": "a"}"#, r#"{"temperature": "hot"}"#, "7", r#"{"eos_token_id": [[1]]}"#]
    {
        assert!(
            matches!(GenerationConfig::from_json(json.as_bytes()), Err(Error::ConfigJson { .. })),
            "{json}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generation_config.json");
    fs::write(&path, "{").unwrap();
    let error = GenerationConfig::open(folder.path()).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("`{}`: no configuration: ", path.display())),
        "{error}"
    );
}
