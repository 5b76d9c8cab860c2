//! What must hold of the reader of files of logits on any bytes; the fuzz target `logits` runs this same function.

use std::io::Cursor;

use squish_eval::{EvalError, LogitsReader, LogitsWriter, llama_file::Limits};

/// Whether `bytes` begin as a file, after a look at all rows that are there.
///
/// # Panics
///
/// If the reader panics, or accepts what is no file.
pub(crate) fn walk_file(bytes: &[u8]) -> bool {
    // Small, so that no input takes long.
    let limits = Limits { vocab_size: 1 << 12, n_tokens: 1 << 12 };
    let mut reader = match LogitsReader::with_limits(Cursor::new(bytes), limits) {
        Ok(reader) => reader,
        Err(error) => {
            look_at(error);
            return false;
        }
    };
    let (n_ctx, vocab_size) = (reader.n_ctx(), reader.vocab_size());
    let tokens = reader.tokens().to_vec();
    assert!(vocab_size <= limits.vocab_size && tokens.len() <= limits.n_tokens);
    assert!(n_ctx >= 3 && tokens.len() % n_ctx == 0 && !tokens.is_empty());
    assert!(tokens.iter().all(|&token| (token as usize) < vocab_size));
    let (first, per_chunk) = (n_ctx / 2 + 1, n_ctx - 1 - n_ctx / 2);
    let mut n_rows = 0;
    loop {
        match reader.next_row() {
            Ok(Some(row)) => {
                assert_eq!(row.index, n_rows / per_chunk * n_ctx + first + n_rows % per_chunk);
                assert!(row.token == tokens[row.index] && row.log_probs.len() == vocab_size);
                n_rows += 1;
            }
            Ok(None) => break,
            Err(error) => {
                look_at(error);
                return true;
            }
        }
    }
    assert_eq!(n_rows, tokens.len() / n_ctx * per_chunk);
    // A second look at the last chunk begins at its first row.
    reader.seek_to_chunk(tokens.len() / n_ctx - 1).expect("bytes that were there");
    let row = reader.next_row().expect("a row that was there").map(|row| row.index);
    assert_eq!(row, Some(tokens.len() - n_ctx + first));
    // What is written of the same tokens has as many bytes.
    let mut writer = LogitsWriter::new(Vec::new(), n_ctx, vocab_size, &tokens).expect("as before");
    for _ in 0..n_rows {
        writer.write_row(&vec![0.0; vocab_size]).expect("memory");
    }
    assert!(writer.finish().expect("all rows").len() <= bytes.len());
    true
}

fn look_at(error: EvalError) {
    assert!(error.to_string().len() < 200, "{error}");
}
