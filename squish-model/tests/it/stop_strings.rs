//! Stop strings against a search in the whole text, for every way to cut it.

use proptest::prelude::*;
use squish_bench::alloc::count_allocations;
use squish_model::{Error, StopStrings};

/// What is shown of `text`, and which stop string ended it: the first to be complete, the longest of those.
fn by_definition<'t>(text: &'t str, stops: &[String]) -> (&'t str, Option<usize>) {
    for end in 0..=text.len() {
        let ends_here =
            |stop: &&(usize, &String)| text.as_bytes()[..end].ends_with(stop.1.as_bytes());
        let all: Vec<(usize, &String)> = stops.iter().enumerate().collect();
        let longest = all
            .iter()
            .filter(ends_here)
            .max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index)));
        if let Some((index, stop)) = longest {
            return (&text[..end - stop.len()], Some(*index));
        }
    }
    (text, None)
}

fn run(pieces: &[&str], stops: &[String]) -> (String, Option<usize>) {
    let mut search = StopStrings::new(stops).unwrap();
    let (mut out, mut found) = (String::new(), None);
    for piece in pieces {
        found = search.push(piece, &mut out);
    }
    if found.is_none() {
        search.finish(&mut out);
    }
    (out, found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_cut_of_a_text_gives_what_a_search_in_the_whole_text_gives(
        text in "[abé☃]{0,24}",
        stops in prop::collection::vec("[abé☃]{1,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let (want, want_stop) = by_definition(&text, &stops);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|&at| text.is_char_boundary(at)).collect();
        ends.extend([0, text.len()]);
        ends.sort_unstable();
        let pieces: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        let (got, stop) = run(&pieces, &stops);
        prop_assert_eq!(&got, want);
        // Equal stop strings are one.
        prop_assert_eq!(stop.map(|i| &stops[i]), want_stop.map(|i| &stops[i]));
    }

    #[test]
    fn no_more_is_held_back_than_may_become_a_stop_string(text in "[ab]{0,20}", stops in prop::collection::vec("[ab]{1,5}", 1..4)) {
        let mut search = StopStrings::new(&stops).unwrap();
        let mut out = String::new();
        for (i, c) in text.char_indices() {
            if search.push(c.encode_utf8(&mut [0; 4]), &mut out).is_some() {
                break;
            }
            let so_far = &text[..=i];
            let longest = (0..=so_far.len())
                .map(|start| &so_far[start..])
                .find(|end| stops.iter().any(|stop| stop.starts_with(end)))
                .unwrap();
            prop_assert_eq!(search.held(), longest);
            prop_assert_eq!(out.clone() + search.held(), so_far);
        }
    }
}

#[test]
fn the_first_to_be_complete_ends_the_text_and_the_longest_of_those() {
    let stops = |all: &[&str]| -> Vec<String> { all.iter().map(|&stop| stop.to_owned()).collect() };
    assert_eq!(run(&["xabcd"], &stops(&["abcd", "bc"])), ("xa".to_owned(), Some(1)));
    assert_eq!(run(&["xa", "bc"], &stops(&["bc", "abc", "c"])), ("x".to_owned(), Some(1)));
    assert_eq!(run(&["aab"], &stops(&["ab"])), ("a".to_owned(), Some(0)));
    assert_eq!(run(&["a", "a", "a"], &stops(&["aab"])), ("aaa".to_owned(), None));
    assert_eq!(run(&["text"], &[]), ("text".to_owned(), None));
}

#[test]
fn after_a_stop_nothing_is_shown_until_a_new_text_begins() {
    let mut search = StopStrings::new(&["stop"]).unwrap();
    let mut out = String::new();
    assert_eq!(search.push("a stop b", &mut out), Some(0));
    assert_eq!(search.push("c", &mut out), Some(0));
    assert_eq!((out.as_str(), search.held()), ("a ", ""));
    search.finish(&mut out);
    assert_eq!(search.push("st", &mut out), None);
    assert_eq!((out.as_str(), search.held()), ("a ", "st"));
    assert_eq!(search.push("op", &mut out), Some(0));
    assert_eq!(out, "a ");
}

#[test]
fn matching_allocates_nothing() {
    let mut search = StopStrings::new(&["</tool_call>", "\n\nUser:", "###"]).unwrap();
    let mut out = String::with_capacity(1000);
    let ((), n) = count_allocations(|| {
        for piece in
            ["some text\n", "\nUs", "er, not", " </tool", "_cal", "ls>##", " \n\nUser", ":"]
        {
            let _ = search.push(piece, &mut out);
        }
    });
    assert_eq!(n, 0);
    assert_eq!(out, "some text\n\nUser, not </tool_calls>## ");
}

#[test]
fn stop_strings_that_are_empty_or_too_long_are_errors() {
    let error = StopStrings::new(&["a", ""]).unwrap_err();
    assert_eq!(error.to_string(), "stop string 1 has 0 bytes, expected at least 1");
    let long = "x".repeat(1 << 15);
    assert!(StopStrings::new(&[&long, &long]).is_ok());
    let error = StopStrings::new(&[&long, &long, "y"]).unwrap_err();
    assert!(matches!(error, Error::StopString { index: 2, actual: 1, .. }), "{error}");
}
