//! Which layers a `quantization_config` of compressed-tensors means.

use std::collections::BTreeMap;

use regex_lite::{Regex, RegexBuilder};

use crate::{Error, error::clip};

/// Classes of a linear layer that a target can name.
const LINEAR: [&str; 2] = ["Linear", "Module"];
/// Those of the embedding.
const EMBEDDING: [&str; 2] = ["Embedding", "Module"];
const EMBEDDING_MODULE: &str = "model.embed_tokens";

/// More patterns than any configuration has, and bytes of a compiled one; a file that asks for more must not take memory for them.
const MOST_PATTERNS: usize = 256;
const MOST_PATTERN_BYTES: usize = 1 << 18;

/// Names, classes and patterns, each with something that it stands for.
///
/// A layer is meant by an entry that is its name; else by the first pattern, in the order of their texts, that matches from the start of
/// its name on; else by an entry that is its class. Of equal entries the last one counts.
#[derive(Clone, Debug)]
pub(super) struct Targets<T> {
    names: BTreeMap<String, T>,
    patterns: BTreeMap<String, (Pattern, T)>,
}

#[derive(Clone, Debug)]
struct Pattern(Regex);

impl<T: Copy> Targets<T> {
    pub(super) fn new() -> Self {
        Self { names: BTreeMap::new(), patterns: BTreeMap::new() }
    }

    /// Adds an entry: a name or class, or a regular expression after `re:`.
    pub(super) fn insert(&mut self, target: &str, meaning: T) -> Result<(), Error> {
        let Some(pattern) = target.strip_prefix("re:") else {
            self.names.insert(target.to_owned(), meaning);
            return Ok(());
        };
        let error = |reason: String| Error::Pattern { pattern: clip(pattern), reason };
        if self.patterns.len() >= MOST_PATTERNS {
            return Err(error(format!("there are more than {MOST_PATTERNS}")));
        }
        let regex = RegexBuilder::new(pattern).size_limit(MOST_PATTERN_BYTES).build();
        let regex = regex.map_err(|reason| error(clip(&reason.to_string())))?;
        self.patterns.insert(pattern.to_owned(), (Pattern(regex), meaning));
        Ok(())
    }

    /// What is meant by the layer called `module`, if anything.
    pub(super) fn of(&self, module: &str) -> Option<T> {
        if let Some(&meaning) = self.names.get(module) {
            return Some(meaning);
        }
        let matching = self.patterns.values().find(|(pattern, _)| pattern.matches(module));
        if let Some(&(_, meaning)) = matching {
            return Some(meaning);
        }
        let classes = if module == EMBEDDING_MODULE { EMBEDDING } else { LINEAR };
        classes.iter().find_map(|&class| self.names.get(class).copied())
    }
}

impl Pattern {
    /// Python's `re.match`: at the start of the name, whatever follows.
    fn matches(&self, module: &str) -> bool {
        // Of all matches the leftmost is found.
        self.0.find(module).is_some_and(|found| found.start() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(list: &[&str]) -> Targets<usize> {
        let mut targets = Targets::new();
        for (i, target) in list.iter().enumerate() {
            targets.insert(target, i).unwrap();
        }
        targets
    }

    #[test]
    fn a_name_counts_before_a_pattern_and_that_before_a_class() {
        let all = targets(&["Linear", "re:.*q_proj", "a.q_proj", "re:.*[qk]_proj", "Embedding"]);
        // In the order of texts `.*[` stands before `.*q`.
        for (module, meant) in [("a.q_proj", 2), ("b.q_proj", 3), ("b.k_proj", 3), ("b.up", 0)] {
            assert_eq!(all.of(module), Some(meant), "{module}");
        }
        assert_eq!(all.of("model.embed_tokens"), Some(4));
        assert_eq!(targets(&["Embedding"]).of("a"), None);
        assert_eq!(targets(&["Module"]).of("model.embed_tokens"), Some(0));
        assert_eq!(targets(&["Linear", "re:a", "re:a", "Linear"]).of("a"), Some(2));
        assert_eq!(targets(&["Linear", "re:a", "re:a", "Linear"]).of("b"), Some(3));
    }

    #[test]
    fn a_pattern_matches_from_the_start_and_need_not_reach_the_end() {
        for (pattern, module, matches) in [
            ("re:model.*", "model.layers.0", true),
            ("re:layers", "model.layers.0", false),
            (r"re:.*layers\.\d+\.mlp", "model.layers.10.mlp.up_proj", true),
            (r"re:.*mlp$", "model.layers.10.mlp.up_proj", false),
            ("re:^lm_head", "lm_head", true),
            ("re:(a|b)x", "bxy", true),
            ("re:", "anything", true),
            ("re:x|.*proj", "a.proj", true),
        ] {
            assert_eq!(targets(&[pattern]).of(module).is_some(), matches, "{pattern} {module}");
        }
    }

    #[test]
    fn patterns_that_cannot_be_matched_are_errors() {
        for pattern in ["re:(", "re:(?!a)b", "re:a{1000}{1000}{1000}"] {
            let error = Targets::new().insert(pattern, ()).unwrap_err();
            assert!(matches!(error, Error::Pattern { .. }), "{error}");
        }
        let mut many = Targets::new();
        for i in 0..MOST_PATTERNS {
            many.insert(&format!("re:{i}"), ()).unwrap();
        }
        assert!(matches!(many.insert("re:x", ()), Err(Error::Pattern { .. })));
    }
}
