//! Links in Markdown.

/// The targets of all `[text](target)` in `text`, without fragments; links to the web aside.
#[must_use]
pub(crate) fn local_links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("](") {
        rest = &rest[start + 2..];
        let Some(end) = rest.find(')') else { break };
        let target = rest[..end].split('#').next().unwrap_or("");
        if !target.is_empty() && !target.contains("://") {
            found.push(target.to_owned());
        }
        rest = &rest[end + 1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_found_and_links_to_the_web_are_not() {
        let text = "a [b](c/d.rs), [e](f.md#g) [h](https://i.j/k) [l](#m) [broken](n";
        assert_eq!(local_links(text), ["c/d.rs", "f.md"]);
    }
}
