//! The text of tokens one by one against the text of all of them, for each kind of decoder.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use squish_model::{StopStrings, TextStream, Tokenizer};

use crate::common::{CHAT_GOLDEN, FIXTURE};

static BYTE_LEVEL: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_file(format!("{FIXTURE}/tokenizer.json")).unwrap());

/// Tokenizers with few tokens, by name.
static SMALL: LazyLock<Vec<(&str, Tokenizer)>> = LazyLock::new(|| {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let (fuse, bytes) = (json!({"type": "Fuse"}), json!({"type": "ByteFallback"}));
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let sequence = |all: &[&Value]| json!({"type": "Sequence", "decoders": all});
    [
        ("llama 2", sequence(&[&replace, &bytes, &fuse, &strip])),
        ("gemma", sequence(&[&replace, &bytes, &fuse])),
        ("metaspace", metaspace),
        ("bytes alone", bytes),
        ("byte level", byte_level.clone()),
        ("byte level in a sequence", sequence(&[&byte_level])),
        ("byte level and more", sequence(&[&byte_level, &fuse, &strip])),
        ("word pieces", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        ("suffixes", json!({"type": "BPEDecoder", "suffix": "</w>"})),
        ("repeats", json!({"type": "CTC", "pad_token": "[PAD]", "word_delimiter_token": "|", "cleanup": true})),
        ("none", Value::Null),
    ]
    .map(|(name, decoder)| (name, small(decoder)))
    .into()
});

/// Pieces that are written in all the ways that decoders know.
const PIECES: [&str; 34] = [
    "<s>", "</s>", "▁", "▁▁", "▁a", "b", "▁hello", "☃", "<0x0A>", "<0xE2>", "<0x98>", "<0x83>",
    "<0xF0>", "<0x9F>", "<0xFF>", "<0x41>", "<0xZZ>", "Ġa", "â", "ĺ", "ĥ", "ð", "Ł", "Ĵ", "ï¿½",
    "ÿ", "##ing", "end</w>", "[PAD]", "|", ".", "n't", "\u{fffd}", "<think>",
];

fn small(decoder: Value) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        PIECES.iter().enumerate().map(|(id, piece)| ((*piece).to_owned(), id.into())).collect();
    let added = |id: usize, special: bool| json!({"id": id, "content": PIECES[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": decoder, "added_tokens": [added(0, true), added(1, true), added(33, false)],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"},
    });
    Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap()
}

/// What comes token by token, and at the end.
fn pieces(mut stream: TextStream, tokens: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> =
        tokens.iter().map(|&token| stream.push(token).unwrap().to_owned()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn characters_are_emitted_when_their_last_byte_is_there() {
    let golden: Value = serde_json::from_str(&CHAT_GOLDEN).unwrap();
    for case in golden["detokenize"].as_array().unwrap() {
        let list = |name: &str| case[name].as_array().unwrap().clone();
        let tokens: Vec<u32> = list("tokens").iter().map(|t| t.as_u64().unwrap() as u32).collect();
        let got = pieces(BYTE_LEVEL.stream(), &tokens);
        assert_eq!(got.concat(), case["skipped"].as_str().unwrap());
        if !tokens.iter().any(|&token| BYTE_LEVEL.is_special(token)) {
            let want: Vec<String> =
                list("pieces").iter().map(|p| p.as_str().unwrap().to_owned()).collect();
            assert_eq!(got, want);
        }
        if case["encoded"] == true {
            assert_eq!(BYTE_LEVEL.encode_plain(case["text"].as_str().unwrap()).unwrap(), tokens);
        }
    }
}

#[test]
fn text_comes_as_early_as_it_is_certain() {
    let tokens = |all: &[&str]| -> Vec<u32> {
        all.iter().map(|piece| PIECES.iter().position(|own| own == piece).unwrap() as u32).collect()
    };
    let of = |name: &str, all: &[&str]| {
        let (_, tokenizer) = SMALL.iter().find(|(own, _)| *own == name).unwrap();
        pieces(tokenizer.stream(), &tokens(all))
    };
    // The first space goes, also after special tokens, and no other.
    assert_eq!(
        of("llama 2", &["<s>", "▁hello", "▁a", "</s>", "▁", "▁a"]),
        ["", "hello", " a", "", " ", " a", ""]
    );
    assert_eq!(of("gemma", &["<s>", "▁hello", "▁a"]), ["", " hello", " a", ""]);
    assert_eq!(of("metaspace", &["▁▁", "▁hello", "b", "▁▁"]), ["", " hello", "b", "  ", ""]);
    // A run of bytes is valid or not as a whole.
    assert_eq!(
        of("llama 2", &["▁a", "<0xE2>", "<0x98>", "<0x83>", "b"]),
        ["a", "", "", "", "☃b", ""]
    );
    assert_eq!(
        of("llama 2", &["<0xE2>", "<0x98>", "<0x83>", "<0xFF>"]),
        ["", "", "", "", "\u{fffd}".repeat(4).as_str()]
    );
    // Bytes of a byte-level vocabulary are characters on their own.
    assert_eq!(of("byte level", &["â", "ĺ", "ĥ", "ÿ", "Ġa"]), ["", "", "☃", "\u{fffd}", " a", ""]);
    assert_eq!(
        of("byte level", &["ð", "Ł", "b", "ï¿½", "â"]),
        ["", "", "\u{fffd}b", "\u{fffd}", "", "\u{fffd}"]
    );
    assert_eq!(of("byte level", &["<think>", "▁a"]), ["<think>", "▁a", ""]);
    assert_eq!(of("suffixes", &["end</w>", "b"]), ["end", " b", ""]);
}

#[test]
fn a_text_after_a_prompt_keeps_its_leading_space() {
    let (_, llama) = &SMALL[0];
    let id = |piece: &str| llama.id_of(piece).unwrap();
    let mut stream = TextStream::after(llama, &[id("<s>"), id("▁hello")]).unwrap();
    assert_eq!(stream.push(id("▁a")).unwrap(), " a");
    let mut stream = TextStream::after(llama, &[id("<s>")]).unwrap();
    assert_eq!(stream.push(id("▁a")).unwrap(), "a");
    let long = vec![id("▁a"); 1000];
    assert_eq!(TextStream::after(llama, &long).unwrap().push(id("▁a")).unwrap(), " a");
}

#[test]
fn tokens_that_are_not_there_and_special_ones_have_no_text() {
    for (name, tokenizer) in SMALL.iter() {
        let mut stream = tokenizer.stream();
        for token in [0, 1, 34, u32::MAX] {
            assert_eq!(stream.push(token).unwrap(), "", "{name}");
        }
        assert_eq!(stream.finish().unwrap(), "", "{name}");
    }
}

#[test]
fn long_texts_cost_each_token_the_same() {
    // Windows that grew would take the square of this.
    for (name, tokenizer) in SMALL.iter() {
        for id in 0..PIECES.len() as u32 {
            let tokens = vec![id; 700];
            let got = pieces(tokenizer.stream(), &tokens).concat();
            assert_eq!(got, tokenizer.decode(&tokens).unwrap(), "{name} {id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn pieces_add_up_to_the_decoded_text(tokens in prop::collection::vec(0..36_u32, 0..120)) {
        for (name, tokenizer) in SMALL.iter() {
            let got = pieces(tokenizer.stream(), &tokens);
            prop_assert_eq!(got.concat(), tokenizer.decode(&tokens).unwrap(), "{}", name);
        }
    }

    #[test]
    fn pieces_of_any_tokens_add_up_with_the_fixture_s_tokenizer(tokens in prop::collection::vec(0..2048_u32, 0..200)) {
        let got = pieces(BYTE_LEVEL.stream(), &tokens);
        prop_assert_eq!(got.concat(), BYTE_LEVEL.decode(&tokens).unwrap());
    }

    #[test]
    fn every_text_streams_to_itself(text in "\\PC{0,60}") {
        let tokens = BYTE_LEVEL.encode_plain(&text).unwrap();
        let got = pieces(BYTE_LEVEL.stream(), &tokens);
        prop_assert_eq!(got.concat(), text.as_str());
        // No piece is cut within a character, so that none has a replacement character that is not in the text.
        prop_assert_eq!(got.concat().matches('\u{fffd}').count(), text.matches('\u{fffd}').count());
    }

    #[test]
    fn no_stop_string_leaks_into_what_is_shown(text in "[ab☃ ]{0,40}", stop in "[ab☃]{1,4}") {
        let mut stream = BYTE_LEVEL.stream();
        let mut stops = StopStrings::new(&[&stop]).unwrap();
        let mut out = String::new();
        let mut found = None;
        for token in BYTE_LEVEL.encode_plain(&text).unwrap() {
            found = stops.push(stream.push(token).unwrap(), &mut out);
            prop_assert!(!out.contains(&stop));
        }
        if found.is_none() {
            found = stops.push(&stream.finish().unwrap(), &mut out);
            if found.is_none() {
                stops.finish(&mut out);
            }
        }
        prop_assert_eq!(out.as_str(), text.split(&stop).next().unwrap());
        prop_assert_eq!(found.is_some(), text.contains(&stop));
    }
}
