//! `unsafe` stands only where the design allows it; every other crate forbids it.

use super::{
    Tree, has_extension,
    metadata::Metadata,
    source::{lines_with_word, without_comments_and_strings},
    table::{self, Unsafe},
};

/// What breaks the rule.
#[must_use]
pub(crate) fn check(metadata: &Metadata, tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for package in metadata.members() {
        let allowed =
            table::find(&package.name).map_or(Unsafe::Nowhere, |member| member.unsafe_code);
        let roots = ["lib.rs", "main.rs"].map(|file| format!("{}/src/{file}", package.name));
        let lacks = |path: &&String| {
            tree.get(*path).is_some_and(|text| !text.contains("#![forbid(unsafe_code)]"))
        };
        if allowed == Unsafe::Nowhere {
            let lacking = roots.iter().filter(lacks);
            faults.extend(lacking.map(|path| format!("{path}: lacks `#![forbid(unsafe_code)]`")));
        }
        let folder = format!("{}/", package.name);
        let files =
            tree.iter().filter(|(path, _)| path.starts_with(&folder) && has_extension(path, "rs"));
        for (path, text) in files.filter(|(path, _)| !is_allowed(allowed, path)) {
            let lines = lines_with_word(&without_comments_and_strings(text), "unsafe");
            faults.extend(
                lines
                    .into_iter()
                    .map(|line| format!("{path}:{line}: `unsafe` is not allowed here")),
            );
        }
    }
    faults
}

fn is_allowed(allowed: Unsafe, path: &str) -> bool {
    match allowed {
        Unsafe::Nowhere => false,
        Unsafe::Everywhere => true,
        Unsafe::File(file) => path == file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{
        metadata::tests::{metadata, package},
        tree,
    };

    #[test]
    fn unsafe_is_found_outside_the_places_that_may_hold_it() {
        let code = "fn f() { unsafe { g() } }\n";
        let members =
            ["squish-kernels", "squish-quant", "squish-checkpoint", "squish-bench", "squish-model"];
        let metadata = metadata(members.map(|name| package(name, vec![])).to_vec());
        let tree = tree(&[
            ("squish-kernels/src/cast.rs", code),
            ("squish-quant/src/fp8.rs", code),
            ("squish-checkpoint/src/mapping.rs", code),
            ("squish-checkpoint/src/reader.rs", code),
            ("squish-bench/src/alloc.rs", code),
            ("squish-bench/src/input.rs", "// unsafe is only spoken of here\n"),
            ("squish-model/src/lib.rs", "#![forbid(unsafe_code)]\n"),
            ("squish-model/benches/ppl.rs", code),
        ]);
        assert_eq!(
            check(&metadata, &tree),
            [
                "squish-quant/src/fp8.rs:1: `unsafe` is not allowed here",
                "squish-checkpoint/src/reader.rs:1: `unsafe` is not allowed here",
                "squish-model/benches/ppl.rs:1: `unsafe` is not allowed here"
            ]
        );
    }

    #[test]
    fn a_crate_without_unsafe_says_so_in_its_lib_rs_or_main_rs() {
        let metadata = metadata(vec![package("squish-model", vec![]), package("xtask", vec![])]);
        let files = [("squish-model/src/lib.rs", "mod a;\n"), ("xtask/src/main.rs", "mod a;\n")];
        assert_eq!(
            check(&metadata, &tree(&files)),
            [
                "squish-model/src/lib.rs: lacks `#![forbid(unsafe_code)]`",
                "xtask/src/main.rs: lacks `#![forbid(unsafe_code)]`"
            ]
        );
    }
}
