//! The shape that every crate shares.

use super::{
    Tree,
    metadata::{Metadata, Package},
    sections::sections,
    source,
};

/// Most lines of code in a lib.rs, comments, blank lines and tests aside.
const MOST_LIB_LINES: usize = 80;

/// What breaks the rule.
#[must_use]
pub(crate) fn check(metadata: &Metadata, paths: &[String], tree: &Tree) -> Vec<String> {
    metadata.members().flat_map(|package| check_crate(package, paths, tree)).collect()
}

fn check_crate(package: &Package, paths: &[String], tree: &Tree) -> Vec<String> {
    let name = package.name.as_str();
    let mut faults = Vec::new();
    let mut want = |holds: bool, what: &str| {
        if !holds {
            faults.push(format!("{name}: {what}"));
        }
    };
    let manifest = sections(tree.get(&format!("{name}/Cargo.toml")).map_or("", String::as_str));
    let value = |section: &str, key: &str| {
        manifest.get(section).and_then(|keys| keys.get(key)).map_or("", String::as_str)
    };
    want(value("[lints]", "workspace") == "true", "Cargo.toml lacks `[lints] workspace = true`");
    let code = tree.get(&format!("{name}/src/lib.rs")).map_or(0, |text| lines_of_code(text));
    want(
        code <= MOST_LIB_LINES,
        &format!("src/lib.rs has {code} lines of code, at most {MOST_LIB_LINES}"),
    );

    if package.is_published() {
        let it = manifest.iter().any(|(section, keys)| {
            section.starts_with("[[test]]")
                && keys.get("name").is_some_and(|value| value == "\"it\"")
        });
        let include = "[\"/src\", \"/README.md\", \"/CHANGELOG.md\", \"/LICENSE-*\"]";
        want(it, "Cargo.toml lacks `[[test]] name = \"it\"`");
        want(value("[package]", "autotests") == "false", "Cargo.toml lacks `autotests = false`");
        want(
            value("[package]", "include") == include,
            &format!("Cargo.toml lacks `include = {include}`"),
        );
        for file in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "tests/it.rs"] {
            want(
                paths.iter().any(|path| *path == format!("{name}/{file}")),
                &format!("{file} is missing"),
            );
        }
        let version = format!("## [{}]", package.version);
        let changelog = tree.get(&format!("{name}/CHANGELOG.md")).map_or("", String::as_str);
        want(
            changelog.lines().any(|line| line.starts_with(&version)),
            &format!("CHANGELOG.md has no heading `{version}`"),
        );
    }
    faults
}

/// Lines that hold code, up to the tests.
fn lines_of_code(text: &str) -> usize {
    let code = source::without_comments_and_strings(text);
    let code = code.split("#[cfg(test)]").next().unwrap_or("");
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{
        metadata::tests::{metadata, package},
        tree,
    };

    const MANIFEST: &str = "[package]\nname = \"squish-quant\"\nautotests = false\n\
        include = [\"/src\", \"/README.md\", \"/CHANGELOG.md\", \"/LICENSE-*\"]\n[[test]]\nname = \"it\"\n[lints]\nworkspace = true\n";
    const FILES: [&str; 5] =
        ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "tests/it.rs"];

    fn faults(manifest: &str, lib: &str, changelog: &str, files: &[&str]) -> Vec<String> {
        let paths: Vec<String> = files.iter().map(|file| format!("squish-quant/{file}")).collect();
        let tree = tree(&[
            ("squish-quant/Cargo.toml", manifest),
            ("squish-quant/src/lib.rs", lib),
            ("squish-quant/CHANGELOG.md", changelog),
        ]);
        check(&metadata(vec![package("squish-quant", vec![])]), &paths, &tree)
    }

    #[test]
    fn a_crate_of_the_right_shape_passes_and_each_missing_part_is_named() {
        let log = "# Changelog\n\n## [0.1.0] - 2026-01-01\n";
        assert_eq!(faults(MANIFEST, "mod a;\n", log, &FILES), [""; 0]);
        for (manifest, what) in [
            (MANIFEST.replace("workspace = true", "workspace = false"), "[lints] workspace = true"),
            (MANIFEST.replace("autotests = false", ""), "autotests"),
            (MANIFEST.replace("/CHANGELOG.md", "/tests"), "include"),
            (MANIFEST.replace("\"it\"", "\"unit\""), "[[test]]"),
        ] {
            let faults = faults(&manifest, "", log, &FILES);
            assert!(faults.len() == 1 && faults[0].contains(what), "{faults:?}");
        }
        for file in FILES {
            let others: Vec<&str> = FILES.into_iter().filter(|other| *other != file).collect();
            assert_eq!(
                faults(MANIFEST, "", log, &others),
                [format!("squish-quant: {file} is missing")]
            );
        }
        assert_eq!(
            faults(MANIFEST, "", "## [0.0.9]\n", &FILES),
            ["squish-quant: CHANGELOG.md has no heading `## [0.1.0]`"]
        );
    }

    #[test]
    fn a_long_lib_rs_is_a_fault_and_comments_do_not_count() {
        let log = "## [0.1.0]\n";
        let long = "mod a;\n".repeat(81);
        assert_eq!(
            faults(MANIFEST, &long, log, &FILES),
            ["squish-quant: src/lib.rs has 81 lines of code, at most 80"]
        );
        let commented = "//! Text.\n\n/// More.\nmod a;\n".repeat(80);
        assert!(faults(MANIFEST, &commented, log, &FILES).is_empty());
    }
}
