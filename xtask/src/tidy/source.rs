//! Rust source with comments and literals blanked, so that words are looked for in code alone.

/// The text with the contents of comments, strings and character literals replaced by spaces; line breaks stay.
#[must_use]
pub(crate) fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = skip(&chars, i);
        if end == i {
            out.push(chars[i]);
            i += 1;
        } else {
            out.extend(chars[i..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

/// Where the comment or literal that starts at `i` ends, or `i` if none does.
fn skip(chars: &[char], i: usize) -> usize {
    let rest = &chars[i..];
    let starts = |text: &str| text.chars().enumerate().all(|(k, c)| rest.get(k) == Some(&c));
    let is_word_before = i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_');
    if starts("//") {
        return i + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len());
    }
    if starts("/*") {
        return i + block_comment(rest);
    }
    if starts("\"") {
        return i + quoted(rest, '"');
    }
    if !is_word_before && (rest[0] == 'r' || starts("br")) {
        let after = if rest[0] == 'b' { 2 } else { 1 };
        let hashes = rest[after..].iter().take_while(|&&c| c == '#').count();
        if rest.get(after + hashes) == Some(&'"') {
            let body = after + hashes + 1;
            let close = |k: usize| {
                rest[k] == '"'
                    && rest[k + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
            };
            return i
                + (body..rest.len()).find(|&k| close(k)).map_or(rest.len(), |k| k + 1 + hashes);
        }
    }
    // 'x' and '\n' are literals, 'a in a type is a lifetime.
    if starts("'") && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
        return i + quoted(rest, '\'');
    }
    i
}

/// Length of a literal that ends at the next quote without a backslash.
fn quoted(rest: &[char], quote: char) -> usize {
    let mut k = 1;
    while k < rest.len() && rest[k] != quote {
        k += if rest[k] == '\\' { 2 } else { 1 };
    }
    (k + 1).min(rest.len())
}

/// Length of a block comment; they nest.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut k) = (0, 0);
    while k < rest.len() {
        match (rest[k], rest.get(k + 1)) {
            ('/', Some('*')) => (depth, k) = (depth + 1, k + 2),
            ('*', Some('/')) => (depth, k) = (depth - 1, k + 2),
            _ => k += 1,
        }
        if depth == 0 {
            return k;
        }
    }
    rest.len()
}

/// Lines, counted from 1, on which `word` stands by itself.
#[must_use]
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let has_word = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
    };
    code.lines().enumerate().filter(|(_, line)| has_word(line)).map(|(i, _)| i + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_comments_and_literals_do_not_count() {
        let text = r##"
// unsafe
/* unsafe /* unsafe */ unsafe */ fn a() {}
let s = "unsafe \" unsafe"; let c = '"'; let d = '\''; let u = "x";
let r = r#"unsafe " unsafe"#; let b = b"unsafe"; let v: &'static str = "";
#![forbid(unsafe_code)]
unsafe { b() }
let not_unsafe = 1; /* x */ unsafe fn c() {}
"##;
        let code = without_comments_and_strings(text);
        assert_eq!(lines_with_word(&code, "unsafe"), [7, 8]);
        assert_eq!(code.lines().count(), text.lines().count());
    }
}
