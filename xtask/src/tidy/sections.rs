//! The little of TOML that the rules need: the `key = value` lines of each section.

use std::collections::BTreeMap;

/// Raw values by section header and key; repeated sections such as `[[test]]` are numbered `[[test]]`, `[[test]]#1`, …
#[must_use]
pub(crate) fn sections(toml: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut out: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut current = String::new();
    for line in toml.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            line.clone_into(&mut current);
            let mut number = 0;
            while out.contains_key(&current) {
                number += 1;
                current = format!("{line}#{number}");
            }
            out.entry(current.clone()).or_default();
        } else if let Some((key, value)) = line.split_once('=') {
            out.entry(current.clone())
                .or_default()
                .insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_under_their_section_and_repeated_sections_are_kept() {
        let all = sections(
            "[package]\nname = \"a\"\n# b = 1\n[[bench]]\nname = \"x\"\n[[bench]]\nname = \"y\"\n[lints]\nworkspace = true\n",
        );
        assert_eq!(all["[package]"].len(), 1);
        assert_eq!(
            (all["[[bench]]"]["name"].as_str(), all["[[bench]]#1"]["name"].as_str()),
            ("\"x\"", "\"y\"")
        );
        assert_eq!(all["[lints]"]["workspace"], "true");
    }
}
