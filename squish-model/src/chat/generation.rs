//! Templates without `{% generation %}` and `{% endgeneration %}`, which transformers adds to the language.
//!
//! The pair marks what a model said, so that training knows. It prints what is between, in a scope of its own; which is what
//! `{% with %}` and `{% endwith %}` do. Whitespace control stays where it is.

/// `source` with the pair replaced.
pub(super) fn without_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let len = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => code_len(tag, "}}"),
            Some(b'%') => code_len(tag, "%}"),
            _ => 1,
        };
        let (mut tag, after) = tag.split_at(len);
        rest = after;
        for (name, replacement) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some((head, tail)) = split_at_only_word(tag, name) {
                out.push_str(head);
                out.push_str(replacement);
                tag = tail;
            }
        }
        out.push_str(tag);
        if split_at_only_word(tag, "raw").is_some() {
            let end = end_of_raw(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Where the text of a raw block ends.
fn end_of_raw(source: &str) -> usize {
    let tags = source.match_indices("{%").map(|(start, _)| start);
    let is_end = |start: &usize| {
        let tag = &source[*start..];
        tag.find("%}").is_some_and(|end| split_at_only_word(&tag[..end + 2], "endraw").is_some())
    };
    { tags }.find(is_end).unwrap_or(source.len())
}

/// Bytes of a tag that ends with `end`, which does not count in strings and within braces.
fn code_len(tag: &str, end: &str) -> usize {
    let bytes = tag.as_bytes();
    let (mut i, mut depth) = (2, 0_usize);
    while i < bytes.len() {
        match bytes[i] {
            quote @ (b'"' | b'\'') => {
                i += 1;
                while i < bytes.len() && bytes[i] != quote {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
            }
            _ if depth == 0 && bytes[i..].starts_with(end.as_bytes()) => return i + 2,
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
    }
    bytes.len()
}

/// What is before and after `word` in a block tag that holds nothing else.
fn split_at_only_word<'t>(tag: &'t str, word: &str) -> Option<(&'t str, &'t str)> {
    let is_filling = |c: char| c == '-' || c == '+' || c.is_whitespace();
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    if inner.trim_matches(is_filling) != word {
        return None;
    }
    let start = tag.find(word)?;
    Some((&tag[..start], &tag[start + word.len()..]))
}

#[cfg(test)]
mod tests {
    use super::without_tags;

    #[test]
    fn the_pair_is_replaced_and_whitespace_control_kept() {
        assert_eq!(
            without_tags("a {%- generation %}b{% if x %}{% endif %}{%endgeneration-%} c"),
            "a {%- with %}b{% if x %}{% endif %}{%endwith-%} c"
        );
    }

    #[test]
    fn everything_else_is_as_it_was() {
        for source in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set x = \"\\\"{% generation %}\" %}",
            "{% raw %}{% generation %}{{ ' }}{% endraw %}",
            "{{ {'a': {'b': '{% generation %}'}} }}",
            "{% if generation %}{% set generations = 1 %}{{ generation }}",
            "{ { % generation %}",
            "{% generation x %}",
            "{%",
            "{{ 'a",
            "{{ 'a\\",
            "{#",
            "{% raw %}{% generation",
            "é{é{%é'é\\é",
        ] {
            assert_eq!(without_tags(source), source);
        }
    }
}
