//! Strings that end a text, found while the text is being made.
//!
//! A text arrives in pieces, and a stop string may begin in one and end in another. So whatever may still become a stop string is
//! held back: the longest end of the text that is the beginning of one. All else is passed on at once.
//!
//! The text ends where the first stop string is complete, which does not depend on how the text was cut into pieces; of those
//! that are complete at the same character the longest counts, and the text before it is the result. Matching takes one step of an
//! Aho-Corasick automaton per byte (A. Aho, M. Corasick, Communications of the ACM 18(6), 1975). A state of it stands for
//! the longest beginning of a stop string that the text ends with, and the length of that is what is held back.

use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};

use crate::Error;

/// A search for stop strings in a text that arrives in pieces.
///
/// # Examples
///
/// ```
/// use squish_model::StopStrings;
///
/// let mut stops = StopStrings::new(&["\nUser:", "###"])?;
/// let mut shown = String::new();
/// assert_eq!(stops.push("Certainly.\nUs", &mut shown), None);
/// assert_eq!(shown, "Certainly.");
/// assert_eq!(stops.push("ing it #", &mut shown), None);
/// assert_eq!(shown, "Certainly.\nUsing it ");
/// assert_eq!(stops.push("## and more", &mut shown), Some(1));
/// assert_eq!(shown, "Certainly.\nUsing it ");
/// # Ok::<(), squish_model::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    automaton: NFA,
    start: StateID,
    state: StateID,
    /// Sorted states with the lengths of what they stand for; other states stand for nothing.
    depths: Vec<(StateID, usize)>,
    held: String,
    found: Option<usize>,
}

/// Bytes of all stop strings together, at most.
const MAX_BYTES: usize = 1 << 16;

impl StopStrings {
    /// A search for `stops`, at the beginning of a text. Without any it passes everything on.
    ///
    /// # Errors
    ///
    /// [`Error::StopString`] of an empty one, or one with which all together exceed 64 KiB.
    ///
    #[expect(
        clippy::missing_panics_doc,
        reason = "it never does: automata of that size can be built"
    )]
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, Error> {
        let (mut n_bytes, mut longest) = (0, 0);
        for (index, stop) in stops.iter().enumerate() {
            let actual = stop.as_ref().len();
            n_bytes += actual;
            longest = longest.max(actual);
            let expected = if actual == 0 {
                "at least 1"
            } else if n_bytes > MAX_BYTES {
                "at most 65536 with those before it"
            } else {
                continue;
            };
            return Err(Error::StopString { index, actual, expected });
        }
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .build(stops.iter().map(AsRef::as_ref))
            .expect("few states");
        let start = automaton.start_state(Anchored::No).expect("built for searches anywhere");
        let mut depths = Vec::with_capacity(n_bytes);
        for stop in stops {
            let mut state = start;
            for (i, &byte) in stop.as_ref().as_bytes().iter().enumerate() {
                state = automaton.next_state(Anchored::No, state, byte);
                depths.push((state, i + 1));
            }
        }
        depths.sort_unstable();
        depths.dedup();
        let held = String::with_capacity(longest);
        Ok(Self { automaton, start, state: start, depths, held, found: None })
    }

    /// Appends to `out` what of the text so far can be shown, now that `text` follows it. Once a stop string is complete, its
    /// place in the list of [`new`](Self::new) is the result, of this call and all later ones, and nothing more is shown.
    ///
    /// Allocates nothing but room in `out`.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.found.is_some() {
            return self.found;
        }
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            self.state = self.automaton.next_state(Anchored::No, self.state, byte);
            if self.automaton.is_match(self.state) {
                // The longest of those that end here comes first.
                let pattern = self.automaton.match_pattern(self.state, 0);
                let n_shown = self.held.len() + i + 1 - self.automaton.pattern_len(pattern);
                self.show(n_shown, text, out);
                self.held.clear();
                self.found = Some(pattern.as_usize());
                return self.found;
            }
        }
        let n_shown = self.held.len() + text.len() - self.depth();
        let rest = self.show(n_shown, text, out);
        self.held.push_str(rest);
        None
    }

    /// Appends to `out` what was held back, when the text has ended without a stop string, and begins a new text.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.state = self.start;
        self.found = None;
    }

    /// What is held back.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// Moves the first `n` bytes of what is held back and `text` to `out`, and returns the part of `text` that is left.
    fn show<'t>(&mut self, n: usize, text: &'t str, out: &mut String) -> &'t str {
        if n < self.held.len() {
            out.extend(self.held.drain(..n));
            return text;
        }
        let (shown, rest) = text.split_at(n - self.held.len());
        out.push_str(&self.held);
        out.push_str(shown);
        self.held.clear();
        rest
    }

    /// Bytes at the end of the text that begin a stop string.
    fn depth(&self) -> usize {
        let found = self.depths.binary_search_by_key(&self.state, |&(state, _)| state);
        found.map_or(0, |at| self.depths[at].1)
    }
}
