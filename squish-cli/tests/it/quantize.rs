//! `squish quantize`, also when it is killed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::common::{FIXTURE, complaint, held_out, json, squish};

fn quantize(out: &Path, more: &[&str]) -> serde_json::Value {
    json(&[&["quantize", FIXTURE, out.to_str().unwrap()], more].concat())
}

#[test]
fn every_format_and_layout_makes_a_checkpoint_that_generates() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = ["-p", "pub fn", "-n", "8", "--greedy"];
    for (i, (format, layout)) in [
        ("int4", "compressed-tensors"),
        ("int8", "compressed-tensors"),
        ("fp8-e4m3", "compressed-tensors"),
        ("mxfp4", "compressed-tensors"),
        ("bf16", "compressed-tensors"),
        ("mxfp4", "squish"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(i.to_string());
        let report = quantize(&out, &["--to", format, "--layout", layout]);
        assert!(report["tensors"].as_u64().unwrap() > 50, "{report}");
        let out = out.to_str().unwrap();
        let stored = json(&[&["generate", out], &prompt[..]].concat());
        assert_eq!(stored["tokens"], 8, "{format}, {layout}");
        // Packed while loading, the same format gives the same text; of INT8 the inputs of one matrix are no multiple of its groups,
        // which files of that layout do not have.
        if format != "int8" {
            let packed = json(&[&["generate", FIXTURE, "--weights", format], &prompt[..]].concat());
            assert_eq!(stored["text"], packed["text"], "{format}, {layout}");
        }
    }
}

#[test]
fn calibrated_checkpoints_generate_and_their_reports_name_the_method() {
    let folder = tempfile::tempdir().unwrap();
    let texts = held_out("tool");
    let calib = ["--calib", texts.to_str().unwrap(), "--calib-limit", "3", "--calib-window", "64"];
    for (format, layout, method) in [
        ("int4", "compressed-tensors", "awq"),
        ("mxfp4", "squish", "smooth"),
        ("fp8-e4m3", "compressed-tensors", "percentile"),
        ("int8", "compressed-tensors", "mse"),
    ] {
        let out = folder.path().join(method);
        let more = ["--to", format, "--layout", layout, "--method", method];
        let report = quantize(&out, &[&more[..], &calib].concat());
        assert_eq!(report["method"], method);
        assert!(report["calibration_tokens"].as_u64().unwrap() > 100, "{report}");
        let generated = json(&["generate", out.to_str().unwrap(), "-p", "pub fn", "-n", "8"]);
        assert_eq!(generated["tokens"], 8, "{method}");
    }
}

#[test]
fn what_does_not_go_with_a_method_is_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let args = ["quantize", FIXTURE, out.to_str().unwrap(), "--to"];
    let none = ["--calib", "no/such/file", "--method", "entropy"];
    for more in [&["int4"][..], &["int8", "--layout", "squish"]] {
        let complaint = complaint(&[&args[..], more, &none].concat());
        assert!(complaint.contains("supported: with static scales"), "{complaint}");
    }
    let complaint = complaint(&[&args[..], &["int8"], &none].concat());
    assert!(complaint.contains("no/such/file"), "{complaint}");
    // One does not go without the other.
    for alone in [&none[..2], &none[2..], &["--calib-limit", "1"]] {
        let output = squish(&[&args[..], &["int8"], alone].concat());
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("required"), "{stderr}");
    }
    assert!(!out.exists());
}

#[test]
fn a_folder_that_exists_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "text").unwrap();
    let complaint = complaint(&["quantize", FIXTURE, out.to_str().unwrap()]);
    assert!(complaint.contains("out"), "{complaint}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn killed_at_any_time_it_leaves_nothing_or_everything() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    quantize(&whole, &["--to", "int4"]);
    let names = |folder: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (expected, mut n_killed) = (names(&whole), 0);
    for i in 0..24_u32 {
        let out = folder.path().join("out");
        let mut child = Command::new(env!("CARGO_BIN_EXE_squish"))
            .args(["quantize", FIXTURE, out.to_str().unwrap(), "--to", "int4"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(u64::from(i * i)));
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            assert_eq!(names(&out), expected, "after {} ms", i * i);
            for name in &expected {
                assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(whole.join(name)).unwrap());
            }
            fs::remove_dir_all(&out).unwrap();
        } else {
            n_killed += 1;
        }
    }
    assert!(n_killed > 0, "every run was over before it was killed");
    // What was left beside it does not disturb the next run.
    let out = folder.path().join("out");
    quantize(&out, &["--to", "int4"]);
    assert_eq!(names(&out), expected);
    assert_eq!(names(folder.path()), ["out", "whole"]);
}
