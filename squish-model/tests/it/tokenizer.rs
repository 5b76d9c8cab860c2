//! The fixture's tokenizer against transformers.

use std::path::Path;

use serde_json::Value;
use squish_model::{Error, Tokenizer};

use crate::common::{FIXTURE, GOLDEN, tokens};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(format!("{FIXTURE}/tokenizer.json")).unwrap()
}

/// Texts of a held-out file.
fn texts(kind: &str) -> Vec<String> {
    let path = format!("{FIXTURE}/../heldout/{kind}.jsonl");
    let text = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        value["text"].as_str().unwrap().to_owned()
    };
    std::fs::read_to_string(path).unwrap().lines().map(text).collect()
}

#[test]
fn tokens_of_held_out_texts_are_those_of_transformers_and_decode_to_the_text() {
    let tokenizer = tokenizer();
    for kind in ["prose", "code"] {
        let texts = texts(kind);
        for i in 0..3 {
            let text = &texts[2 + 7 * i];
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, tokens(&GOLDEN, &format!("tokens.{kind}{i}")));
            assert_eq!(tokenizer.decode(&got).unwrap(), *text);
        }
    }
}

#[test]
fn special_tokens_are_recognized_and_left_out_of_text() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.encode("").unwrap(), [0]);
    let tokens = tokenizer.encode("<|im_start|>user<|im_end|>").unwrap();
    assert_eq!((tokens[..2].to_vec(), tokens.last()), (vec![0, 1], Some(&2)));
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "user");
    // All bytes have tokens, so every text comes back.
    let text = "snow ☃, 字, \u{0}\t\r\n  é\u{301}\u{10ffff}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
}

#[test]
fn a_file_that_is_missing_or_no_tokenizer_is_an_error() {
    let missing = Path::new(FIXTURE).join("none.json");
    let error = Tokenizer::from_file(&missing).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "{error:?}");
    let other = Path::new(FIXTURE).join("config.json");
    let error = Tokenizer::from_file(&other).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("`{}`: tokenizer: ", other.display())),
        "{error}"
    );
    let Error::InFile { path, error } = error else { panic!("{error:?}") };
    assert_eq!(path, other);
    assert!(matches!(*error, Error::Tokenizer { .. }), "{error:?}");
}
