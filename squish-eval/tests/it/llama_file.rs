use std::io::{self, Cursor, ErrorKind, Read, Write};

use proptest::prelude::*;
use squish_eval::{
    EvalError, KlStats, LogitsReader, LogitsWriter, Recipe, for_each_row,
    llama_file::{Limits, compare_with_base, write_base},
};

use crate::{
    common::{Fading, as_tokens, golden, numbers},
    walk_file::walk_file,
};

/// A file of one chunk of three tokens.
fn file(vocab_size: usize, row: &[f32]) -> Vec<u8> {
    let mut writer = LogitsWriter::new(Vec::new(), 3, vocab_size, &[0; 3]).expect("a chunk");
    writer.write_row(row).expect("a distribution");
    writer.finish().expect("one row")
}

#[test]
fn the_golden_file_is_read_as_numpy_reads_it() {
    let golden = golden();
    let file = golden.u8("file");
    let (want, width) = (golden.f32("file.log_probs"), golden.shape("kl.base")[1]);
    let targets = as_tokens(&golden.i64("kl.targets"));
    let mut reader = LogitsReader::new(&file[..]).expect("a file");
    assert_eq!((reader.n_ctx(), reader.vocab_size(), reader.tokens().len()), (8, width, 320));
    for (want, &target) in want.chunks(width).zip(&targets) {
        let row = reader.next_row().expect("whole").expect("a row");
        assert_eq!((row.token, row.log_probs), (target, want));
    }
    assert_eq!(reader.next_row(), Ok(None));
    assert!(walk_file(&file));
}

#[test]
fn the_golden_file_is_written_but_for_the_last_place_of_its_log_sums() {
    let golden = golden();
    let (want, logits) = (golden.u8("file"), golden.f32("kl.base"));
    let tokens = LogitsReader::new(&want[..]).expect("a file").tokens().to_vec();
    let mut writer = LogitsWriter::new(Vec::new(), 8, 101, &tokens).expect("chunks");
    logits.chunks(101).for_each(|row| writer.write_row(row).expect("a distribution"));
    let got = writer.finish().expect("all rows");
    assert_eq!(got.len(), want.len());
    let header = 20 + 4 * 320;
    assert_eq!(got[..header], want[..header]);
    for (got, want) in got[header..].chunks(8 + 2 * 102).zip(want[header..].chunks(8 + 2 * 102)) {
        let least = |row: &[u8]| f32::from_le_bytes(row[4..8].try_into().expect("4 bytes"));
        assert!((least(got) - least(want)).abs() <= 2e-6, "{} {}", least(got), least(want));
        assert_eq!((&got[..4], &got[8..]), (&want[..4], &want[8..]));
    }
}

#[test]
fn divergences_through_the_golden_file_are_those_of_llama_cpp_s_formula() {
    let golden = golden();
    let file = golden.u8("file");
    let mut reader = LogitsReader::new(&file[..]).expect("a file");
    for (other, want) in golden.f32("kl.other").chunks(101).zip(golden.f64("kl.coarse")) {
        let row = reader.next_row().expect("whole").expect("a row");
        let mut stats = KlStats::default();
        stats.push_log_probs(row.log_probs, other, row.token).expect("distributions");
        let got = stats.report().expect("a token").kl.mean.value;
        assert!((got - want).abs() < 2e-6, "{got} {want}");
    }
}

#[test]
fn the_published_row_has_the_published_codes() {
    let bytes = file(7, &[2.0, 0.5, -1.0, 0.0, -3.0, 1.5, -20.0]);
    let codes: Vec<u16> =
        bytes[20 + 12 + 8..].as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    // The last one pads the odd vocabulary.
    assert_eq!(codes, [65535, 59391, 53247, 57343, 45055, 63487, 0, 0]);
    let equal = file(7, &[0.25; 7]);
    assert_eq!(equal[32..36], [0; 4]);
    assert_eq!(equal[40..], [0; 16]);
    let mut reader = LogitsReader::new(&equal[..]).expect("a file");
    let row = reader.next_row().expect("whole").expect("a row");
    assert!(row.log_probs.iter().all(|p| (p + 7_f32.ln()).abs() < 1e-6));
}

proptest! {
    #[test]
    fn what_is_written_is_read_within_half_a_step(vocab_size in 1..40_usize, seed: u64, scale in 1e-30..30.0_f32, masked: bool) {
        let mut logits: Vec<f32> = numbers(vocab_size, seed).iter().map(|z| z * scale).collect();
        if masked {
            logits[1..].iter_mut().step_by(3).for_each(|z| *z = f32::NEG_INFINITY);
        }
        let bytes = file(vocab_size, &logits);
        prop_assert!(walk_file(&bytes));
        let mut reader = LogitsReader::new(&bytes[..]).expect("a file");
        let row = reader.next_row().expect("whole").expect("a row");
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&z| f64::from(z - most).exp()).sum();
        for (&z, &got) in logits.iter().zip(row.log_probs) {
            let want = (f64::from(z - most)).max(-16.0) - sum.ln();
            prop_assert!((f64::from(got) - want).abs() <= 16.0 / 65535.0 / 2.0 + 4e-6, "{got} {want}");
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), seal in 0..4_u8) {
        // Most begin as a file of small sizes.
        if seal > 0 && bytes.len() >= 20 {
            bytes[..8].copy_from_slice(b"_logits_");
            for at in [8, 12, 16] {
                bytes[at] = bytes[at] % 12 + 1;
                bytes[at + 1..at + 4].fill(0);
            }
            if seal > 1 {
                bytes[20..].iter_mut().for_each(|b| *b &= 1);
            }
        }
        walk_file(&bytes);
    }

    #[test]
    fn a_file_that_is_cut_or_changed_is_refused_or_read(seed: u64, at in 0..400_usize, change: u8) {
        let mut writer = LogitsWriter::new(Vec::new(), 5, 9, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 1]).expect("chunks");
        for i in 0..4 {
            writer.write_row(&numbers(9, seed ^ i)).expect("a distribution");
        }
        let mut bytes = writer.finish().expect("all rows");
        walk_file(&bytes[..at.min(bytes.len())]);
        let at = at % bytes.len();
        bytes[at] = change;
        walk_file(&bytes);
    }
}

#[test]
fn a_model_compared_with_its_own_file_differs_by_steps_and_with_another_by_more() {
    let golden = golden();
    let tokens = as_tokens(&golden.i64("tokens"));
    let mut model = Fading::new(&golden);
    let bytes = write_base(&mut model, &tokens, 32, Some(0), Vec::new()).expect("a file");
    let mut reader = LogitsReader::new(&bytes[..]).expect("a file");
    assert_eq!(reader.tokens(), &tokens[..192]);
    let itself = compare_with_base(&mut model, &mut reader, Some(0)).expect("as before");
    let itself = itself.report().expect("tokens");
    assert!(itself.kl.percentile(1.0) < 2e-4 && itself.kl.percentile(0.0) > -2e-4, "{itself:?}");
    assert!(itself.same_top.value == 1.0 && itself.base.n_tokens() == 90);
    let recipe = Recipe::LlamaCpp { n_ctx: 32, bos: Some(0) };
    let own = squish_eval::perplexity(&mut model, &tokens, recipe).expect("finite");
    assert_eq!(itself.other, own.nll);
    // Targets that the file lost are likelier in it.
    let lost = own.nll.nats() - itself.base.nats();
    assert!((-0.02..own.nll.nats()).contains(&lost), "{lost}");
    // Without BOS it is another model.
    let mut reader = LogitsReader::new(&bytes[..]).expect("a file");
    let other = compare_with_base(&mut model, &mut reader, None).expect("as before");
    assert!(other.report().expect("tokens").kl.mean.value > 1e-3);
}

#[test]
fn one_chunk_is_enough_for_a_file_if_not_for_a_text() {
    let golden = golden();
    let mut model = Fading::new(&golden);
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut writer = LogitsWriter::new(Vec::new(), 8, 50, &tokens).expect("a chunk");
    let recipe = Recipe::LlamaCpp { n_ctx: 8, bos: None };
    let twice = [tokens, tokens].concat();
    for_each_row(&mut model, &twice, recipe, |row| {
        if row.window == 0 { writer.write_row(row.logits) } else { Ok(()) }
    })
    .expect("finite");
    let bytes = writer.finish().expect("all rows");
    let mut reader = LogitsReader::new(&bytes[..]).expect("a file");
    let stats = compare_with_base(&mut model, &mut reader, None).expect("finite");
    assert_eq!(stats.report().expect("tokens").kl.sorted().len(), 3);
}

#[test]
fn chunks_are_found_in_any_order() {
    let golden = golden();
    let bytes = golden.u8("file");
    let mut reader = LogitsReader::new(Cursor::new(&bytes)).expect("a file");
    let mut first = |chunk| {
        reader.seek_to_chunk(chunk).expect("a chunk");
        reader.next_row().expect("whole").map(|row| (row.index, row.log_probs.to_vec()))
    };
    let want = golden.f32("file.log_probs");
    for chunk in [39, 0, 7, 7, 1] {
        let (index, row) = first(chunk).expect("a row");
        assert_eq!(index, chunk * 8 + 5);
        assert_eq!(row, want[chunk * 3 * 101..][..101]);
    }
    assert_eq!(first(40), None);
    assert_eq!(first(usize::MAX), None);
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let header = |n_ctx: i32, vocab_size: i32, n_chunks: i32| {
        let sizes = [n_ctx, vocab_size, n_chunks].into_iter().flat_map(i32::to_le_bytes);
        b"_logits_".iter().copied().chain(sizes).collect::<Vec<u8>>()
    };
    let read = |bytes: &[u8]| LogitsReader::new(bytes).map(|_| ());
    for (bytes, what) in [
        (header(0, 5, 5), "n_ctx"),
        (header(-4, 5, 5), "n_ctx"),
        (header(i32::MAX, 5, 5), "n_ctx"),
        (header(8, 0, 5), "vocab_size"),
        (header(8, i32::MAX, 5), "vocab_size"),
        (header(8, 5, 0), "n_chunks"),
        (header(8, 5, (1 << 23) + 1), "n_chunks"),
    ] {
        assert!(
            matches!(read(&bytes), Err(EvalError::Header { what: w, .. }) if w == what),
            "{what}"
        );
    }
    assert!(matches!(read(&header(2, 5, 5)), Err(EvalError::Value { what: "n_ctx", .. })));
    let eof = |action| Err(EvalError::Io { action, kind: ErrorKind::UnexpectedEof });
    assert_eq!(read(&header(8, 5, 1 << 23)), eof("read the tokens"));
    assert_eq!(read(b"_log"), eof("read the header"));
    assert_eq!(read(b"_logits_\x08\0\0"), eof("read the header"));
    assert_eq!(
        read(b"GGUF\x03\0\0\0").unwrap_err().to_string(),
        "no file of logits: it begins with [47, 47, 55, 46, 03, 00, 00, 00]"
    );
    let mut bytes = header(3, 5, 1);
    bytes.extend([4_i32, 5, 0].into_iter().flat_map(i32::to_le_bytes));
    assert_eq!(read(&bytes), Err(EvalError::Token { index: 1, token: 5, vocab_size: 5 }));
    let limits = Limits { vocab_size: 4, n_tokens: 100 };
    let error = LogitsReader::with_limits(&bytes[..], limits).expect_err("a larger vocabulary");
    assert_eq!(error.to_string(), "`vocab_size` of the file is 5, expected 4 at most");
}

#[test]
fn rows_that_end_or_hold_no_numbers_are_refused() {
    let good = file(5, &[0.0, 1.0, 2.0, 3.0, 4.0]);
    let second = |bytes: &[u8]| LogitsReader::new(bytes).expect("a header").next_row().map(|_| ());
    assert_eq!(second(&good), Ok(()));
    let eof = EvalError::Io { action: "read a row", kind: ErrorKind::UnexpectedEof };
    assert_eq!(second(&good[..good.len() - 1]), Err(eof));
    for (at, what) in [(32, "scale"), (36, "least")] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            assert!(
                matches!(second(&bytes), Err(EvalError::Value { what: w, .. }) if w == what),
                "{what} {bad}"
            );
        }
    }
}

#[test]
fn a_writer_takes_what_it_was_made_for() {
    let new = |n_ctx, vocab_size, tokens: &[u32]| {
        LogitsWriter::new(Vec::new(), n_ctx, vocab_size, tokens).map(|_| ())
    };
    assert!(matches!(new(2, 5, &[0, 0]), Err(EvalError::Value { what: "n_ctx", .. })));
    assert!(matches!(new(0, 5, &[0, 0]), Err(EvalError::Value { what: "n_ctx", .. })));
    assert!(matches!(new(3, 0, &[0; 3]), Err(EvalError::Value { what: "vocab_size", .. })));
    assert_eq!(
        new(3, 5, &[0; 4]),
        Err(EvalError::Length { what: "tokens", expected: 3, actual: 4 })
    );
    assert_eq!(new(3, 5, &[]), Err(EvalError::Length { what: "tokens", expected: 3, actual: 0 }));
    assert_eq!(new(3, 5, &[0, 0, 5]), Err(EvalError::Token { index: 2, token: 5, vocab_size: 5 }));
    assert!(matches!(new(3, 1 << 31, &[0; 3]), Err(EvalError::Header { what: "vocab_size", .. })));
    let mut writer = LogitsWriter::new(Vec::new(), 3, 2, &[0; 3]).expect("a chunk");
    for (row, error) in [
        ([f32::NAN, 0.0], EvalError::Nan { row: 2 }),
        ([f32::INFINITY, 0.0], EvalError::Infinite { row: 2 }),
        ([f32::NEG_INFINITY; 2], EvalError::AllMasked { row: 2 }),
    ] {
        assert_eq!(writer.write_row(&row), Err(error));
    }
    let length = EvalError::Length { what: "logits", expected: 2, actual: 3 };
    assert_eq!(writer.write_row(&[0.0; 3]), Err(length));
    writer.write_row(&[0.0; 2]).expect("a row");
    let rows = EvalError::Rows { expected: None, actual: Some((1, 0)) };
    assert_eq!(writer.write_row(&[0.0; 2]), Err(rows));
    let missing = LogitsWriter::new(Vec::new(), 3, 2, &[0; 3]).expect("a chunk").finish();
    assert_eq!(missing, Err(EvalError::Rows { expected: Some((0, 0)), actual: None }));
}

/// A disk that is full after some bytes, and cannot be read.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        if n == 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(n) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Full {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn what_the_system_refuses_is_said() {
    let error = |action, kind| EvalError::Io { action, kind };
    let header = LogitsWriter::new(Full(10), 3, 2, &[0; 3]).map(|_| ());
    assert_eq!(header, Err(error("write the header", ErrorKind::StorageFull)));
    let mut writer = LogitsWriter::new(Full(34), 3, 2, &[0; 3]).expect("room for the header");
    assert_eq!(writer.write_row(&[0.0; 2]), Err(error("write a row", ErrorKind::StorageFull)));
    let read = LogitsReader::new(Full(0)).map(|_| ()).expect_err("not to be read");
    assert_eq!(read.to_string(), "cannot read the header: permission denied");
}
