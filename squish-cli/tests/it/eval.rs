//! `squish eval`.

use crate::common::{FIXTURE, held_out, json};

fn args<'a>(measure: &'a str, file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["eval", measure, FIXTURE, file, "--limit", "3"], more].concat()
}

#[test]
fn perplexity_is_that_of_the_library_for_every_recipe() {
    let prose = held_out("prose");
    let prose = prose.to_str().unwrap();
    let mut seen = Vec::new();
    for recipe in ["strided", "hf-doc", "lm-eval"] {
        let report = json(&args("ppl", prose, &["--recipe", recipe, "--exact", "--window", "128"]));
        let perplexity = report["perplexity"].as_f64().unwrap();
        assert!((5.0..100.0).contains(&perplexity), "{recipe}: {report}");
        assert_eq!(report["texts"], 3);
        seen.push(perplexity);
    }
    assert!(seen[0] != seen[1] && seen[0] != seen[2]);
    let small = ["--recipe", "llama-cpp", "--window", "128"];
    assert!(json(&args("ppl", prose, &small))["tokens"].as_u64().unwrap() > 100);
}

#[test]
fn a_model_does_not_differ_from_itself_and_does_with_fewer_bits() {
    let code = held_out("code");
    let code = code.to_str().unwrap();
    let same = json(&args("kl", code, &["--exact"]));
    assert!(same["mean_kl"].as_f64().unwrap().abs() < 1e-9, "{same}");
    assert_eq!(same["same_top"], 1.0);
    let fewer = json(&args("kl", code, &["--weights", "mxfp4"]));
    assert!(fewer["mean_kl"].as_f64().unwrap() > 1e-4, "{fewer}");
    assert!(fewer["same_top"].as_f64().unwrap() < 1.0, "{fewer}");
}

#[test]
fn logits_saved_to_a_file_stand_for_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("base.kld");
    let file = file.to_str().unwrap();
    let code = held_out("code");
    let code = code.to_str().unwrap();
    let recipe = ["--recipe", "llama-cpp", "--window", "128", "--weights", "int4"];
    let direct = json(&args("kl", code, &[&recipe[..], &["--save-logits", file]].concat()));
    let through = json(&args("kl", code, &[&recipe[..], &["--base-logits", file]].concat()));
    let [direct, through] = [direct, through].map(|report| report["mean_kl"].as_f64().unwrap());
    // Windows go over the ends of texts in the file.
    assert!((direct - through).abs() < 0.5 * direct, "{direct} {through}");
}
