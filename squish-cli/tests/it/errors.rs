//! What goes wrong is one line, with the names and numbers in it, and exit code 2.

use std::fs;

use crate::common::{FIXTURE, complaint, held_out, squish};

#[test]
fn a_folder_that_is_not_there_is_named() {
    for command in ["generate", "inspect"] {
        let complaint = complaint(&[command, "no/such/folder"]);
        assert!(complaint.starts_with("error: cannot read `no/such/folder/"), "{complaint}");
    }
}

#[test]
fn numbers_out_of_range_are_named_with_their_ranges() {
    let complaint = complaint(&["generate", FIXTURE, "--top-p", "1.5"]);
    assert!(complaint.contains("`top_p` is 1.5"), "{complaint}");
    let complaint = self::complaint(&["generate", FIXTURE, "--temperature=-1"]);
    assert!(complaint.contains("`temperature` is -1"), "{complaint}");
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let long = "word ".repeat(2000);
    let complaint = complaint(&["generate", FIXTURE, "--prompt", &long]);
    assert!(complaint.contains("exceed the model's context of 512"), "{complaint}");
}

#[test]
fn a_line_that_is_no_text_is_named_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.jsonl");
    fs::write(&path, "{\"text\": \"one\"}\n{\"txt\": 2}\n").unwrap();
    let complaint = complaint(&["eval", "ppl", FIXTURE, path.to_str().unwrap()]);
    assert!(complaint.contains("line 2: missing field `text`"), "{complaint}");
}

#[test]
fn texts_too_short_for_the_recipe_are_an_error_that_says_how_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.txt");
    fs::write(&path, "short").unwrap();
    let args = ["eval", "ppl", FIXTURE, path.to_str().unwrap(), "--recipe", "llama-cpp"];
    let complaint = complaint(&args);
    assert!(complaint.contains("no text of at least 1024 tokens"), "{complaint}");
}

#[test]
fn a_window_longer_than_the_context_is_refused() {
    let prose = held_out("prose");
    let args =
        ["eval", "ppl", FIXTURE, prose.to_str().unwrap(), "--window", "4096", "--stride", "1"];
    let complaint = complaint(&args);
    assert!(complaint.contains("512"), "{complaint}");
}

#[test]
fn a_misspelled_option_is_explained_and_has_exit_code_2() {
    let output = squish(&["generate", FIXTURE, "--wieghts", "mxfp4"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--weights"));
    let output = squish(&["generate", FIXTURE, "--weights", "mxfp5"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("mxfp4"));
}
