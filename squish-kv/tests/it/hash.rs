//! The bytes that hashes are made of, against Python's hashlib.

use squish_bench::golden::Golden;
use squish_kv::{BlockHash, PrefixKey, Salt, Scope};

/// The scopes of `tools/golden/kv.py`, in its order.
const SCOPES: [Scope<'_>; 8] = {
    const PLAIN: Scope<'_> =
        Scope { model: b"model", adapter: None, layer_group: 0, salt: Salt::Shared };
    [
        PLAIN,
        Scope { model: b"", ..PLAIN },
        Scope { adapter: Some(b"adapter"), ..PLAIN },
        Scope { adapter: Some(b""), ..PLAIN },
        Scope { layer_group: 0x0102_0304, ..PLAIN },
        Scope { salt: Salt::Tenant(b"tenant"), ..PLAIN },
        Scope { salt: Salt::Tenant(b""), ..PLAIN },
        Scope { adapter: Some(b"adapter"), layer_group: 1, salt: Salt::Tenant(b"tenant"), ..PLAIN },
    ]
};

fn digests(bytes: &[u8]) -> Vec<BlockHash> {
    bytes.as_chunks().0.iter().map(|&digest| BlockHash(digest)).collect()
}

#[test]
fn keys_are_those_of_python() {
    let want = digests(&Golden::load(env!("CARGO_MANIFEST_DIR"), "hash").u8("keys"));
    assert_eq!(want.len(), SCOPES.len());
    for (scope, want) in SCOPES.iter().zip(want) {
        assert_eq!(scope.key().root(), want, "{scope:?}");
    }
}

#[test]
fn chains_are_those_of_python() {
    let golden = Golden::load(env!("CARGO_MANIFEST_DIR"), "hash");
    let tokens: Vec<u32> =
        golden.i64("tokens").into_iter().map(|token| u32::try_from(token).unwrap()).collect();
    for block_size in [1, 3, 16, 32, 64, 128] {
        let want = digests(&golden.u8(&format!("chain.{block_size}")));
        assert_eq!(want.len(), tokens.len() / block_size);
        let mut parent = SCOPES[7].key().root();
        for (i, (tokens, want)) in tokens.chunks_exact(block_size).zip(want).enumerate() {
            parent = BlockHash::of(&parent, tokens);
            assert_eq!(parent, want, "block {i} of {block_size}");
        }
    }
}

#[test]
fn no_two_of_the_scopes_have_one_key() {
    let keys = SCOPES.map(|scope| scope.key());
    for (i, key) in keys.iter().enumerate() {
        assert!(keys[..i].iter().all(|other: &PrefixKey| other != key), "{:?}", SCOPES[i]);
    }
    // Bytes that move from one field to the next.
    let scope = |model, adapter| Scope { model, adapter, ..SCOPES[0] }.key();
    assert_ne!(scope(b"ab", Some(b"c")), scope(b"a", Some(b"bc")));
}

#[test]
fn a_salt_is_not_shown() {
    let shown = format!("{:?}", SCOPES[5]);
    assert!(shown.contains("Tenant(..)") && !shown.contains("tenant"), "{shown}");
    let root = SCOPES[0].key().root();
    assert_eq!(format!("{root:?}").len(), 64);
}
