//! Blocks in a store: what comes back is what was saved, or nothing.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use squish_kv::{
    BlockHash, E4M3, E5M2, Error, KvElement, KvShape, PagedKvCache, PrefixKey, Retention, Salt,
    Scaling, Scope, SequenceId, bf16,
    disk::{BlockStore, DiskError, DiskStore},
    f16,
};

use crate::gqa::numbers;

const SHAPE: KvShape = KvShape { n_layers: 2, n_heads: 2, key_dim: 6, value_dim: 4 };
const BLOCK: usize = 4;
const SCALES: [[f32; 2]; 2] = [[0.01, 0.02], [0.005, 0.01]];

fn key(salt: Salt<'_>) -> PrefixKey {
    Scope { model: b"model", adapter: None, layer_group: 0, salt }.key()
}

fn cache<E: KvElement>(n_blocks: usize, scaling: Scaling<'_>) -> PagedKvCache<E> {
    PagedKvCache::new(SHAPE, n_blocks, BLOCK, scaling).unwrap()
}

/// Tokens whose beginnings differ with `first`.
fn prompt(first: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| if i == 0 { first } else { i }).collect()
}

/// A sequence with the keys and values of a prompt.
fn computed<E: KvElement>(
    cache: &mut PagedKvCache<E>,
    key: &PrefixKey,
    tokens: &[u32],
) -> SequenceId {
    let (id, n_cached) = cache.create_with_prefix(key, tokens, Retention::All).unwrap();
    append(cache, id, &tokens[n_cached..], n_cached);
    id
}

/// The rows of a token depend on its place.
fn append<E: KvElement>(cache: &mut PagedKvCache<E>, id: SequenceId, tokens: &[u32], first: usize) {
    let mut step = cache.begin(&[(id, tokens.len())]).unwrap();
    for layer in 0..SHAPE.n_layers {
        let [k, v] = [SHAPE.key_dim, SHAPE.value_dim].map(|width| {
            let all = numbers(first + tokens.len(), SHAPE.n_heads, width, layer);
            all.slice_move(squish_kv::ndarray::s![first.., .., ..])
        });
        step.write(layer, id, k.view(), v.view()).unwrap();
    }
    step.record(id, tokens).unwrap();
    step.commit().unwrap();
}

/// All numbers of a sequence, as bits.
fn rows<E: KvElement>(cache: &PagedKvCache<E>, id: SequenceId) -> Vec<u32> {
    let of_layer = |layer| {
        let (keys, values) = cache.gather(layer, id).unwrap();
        [keys, values]
    };
    (0..SHAPE.n_layers).flat_map(of_layer).flatten().map(f32::to_bits).collect()
}

/// A store in memory, whose calls can be made to fail.
#[derive(Default)]
struct Memory {
    blocks: RefCell<HashMap<[u8; 32], Vec<u8>>>,
    fails_at: RefCell<Option<(&'static str, usize)>>,
}

impl Memory {
    fn call(&self, name: &str) -> io::Result<()> {
        match &mut *self.fails_at.borrow_mut() {
            Some((at, 0)) if *at == name => Err(io::Error::other("no disk")),
            Some((at, n)) if *at == name => {
                *n -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl BlockStore for Memory {
    fn contains(&self, hash: &BlockHash) -> io::Result<bool> {
        self.call("contains")?;
        Ok(self.blocks.borrow().contains_key(&hash.0))
    }

    fn load(&self, hash: &BlockHash, out: &mut [u8]) -> io::Result<bool> {
        self.call("load")?;
        let blocks = self.blocks.borrow();
        let Some(bytes) = blocks.get(&hash.0).filter(|bytes| bytes.len() == out.len()) else {
            return Ok(false);
        };
        out.copy_from_slice(bytes);
        Ok(true)
    }

    fn store(&self, hash: &BlockHash, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        self.call("store")?;
        self.blocks.borrow_mut().insert(hash.0, parts.collect::<Vec<_>>().concat());
        Ok(())
    }

    fn remove(&self, hash: &BlockHash) -> io::Result<()> {
        self.call("remove")?;
        self.blocks.borrow_mut().remove(&hash.0);
        Ok(())
    }
}

/// How many tokens a new cache finds, whose rows are those of `want`.
fn found<E: KvElement>(
    store: &impl BlockStore,
    scaling: Scaling<'_>,
    key: &PrefixKey,
    tokens: &[u32],
) -> usize {
    let mut fresh = cache::<E>(20, scaling);
    let (id, n_cached) =
        fresh.create_with_stored_prefix(key, tokens, Retention::All, store).unwrap();
    assert_eq!(fresh.len(id).unwrap(), n_cached);
    let mut other = cache::<E>(20, scaling);
    let want = computed(&mut other, key, tokens);
    // What is not there is computed, and then both are one.
    if n_cached < tokens.len() {
        append(&mut fresh, id, &tokens[n_cached..], n_cached);
    }
    assert_eq!(rows(&fresh, id), rows(&other, want));
    n_cached
}

fn round_trip<E: KvElement>(scaling: Scaling<'_>) {
    let (store, key) = (Memory::default(), key(Salt::Shared));
    let mut cache = cache::<E>(20, scaling);
    let tokens = prompt(7, 14);
    let id = computed(&mut cache, &key, &tokens);
    assert_eq!(cache.save_blocks(id, &store).unwrap(), 3);
    assert_eq!(cache.save_blocks(id, &store).unwrap(), 0, "they are there");
    assert_eq!(found::<E>(&store, scaling, &key, &tokens), 12);
    // Never the last token.
    assert_eq!(found::<E>(&store, scaling, &key, &tokens[..12]), 8);
    assert_eq!(found::<E>(&store, scaling, &key, &tokens[..1]), 0);
    // Prompts that part.
    let other = [&tokens[..8], &[99; 6]].concat();
    assert_eq!(found::<E>(&store, scaling, &key, &other), 8);
    assert_eq!(found::<E>(&store, scaling, &key, &prompt(8, 14)), 0);
}

#[test]
fn what_comes_back_are_the_bits_that_were_saved() {
    round_trip::<f32>(Scaling::Dynamic);
    round_trip::<bf16>(Scaling::Dynamic);
    round_trip::<f16>(Scaling::Dynamic);
    round_trip::<i8>(Scaling::Dynamic);
    round_trip::<E4M3>(Scaling::Dynamic);
    round_trip::<E5M2>(Scaling::Dynamic);
    round_trip::<i8>(Scaling::Static(&SCALES));
    round_trip::<E4M3>(Scaling::Static(&SCALES));
}

#[test]
fn loaded_blocks_are_found_by_others_and_saved_ones_only_by_their_key() {
    let (store, shared) = (Memory::default(), key(Salt::Shared));
    let mut first = cache::<f32>(20, Scaling::Dynamic);
    let tokens = prompt(1, 9);
    for salt in [Salt::Shared, Salt::Tenant(b"a")] {
        let id = computed(&mut first, &key(salt), &tokens);
        assert_eq!(first.save_blocks(id, &store).unwrap(), 2);
    }
    let mut fresh = cache::<f32>(20, Scaling::Dynamic);
    for (salt, want) in
        [(Salt::Tenant(b"b"), 0), (Salt::Tenant(b"a"), 8), (Salt::Shared, 8), (Salt::Shared, 8)]
    {
        let found = fresh.create_with_stored_prefix(&key(salt), &tokens, Retention::All, &store);
        assert_eq!(found.unwrap().1, want);
    }
    // Of two sequences of one prompt the second shares the blocks of the first.
    assert_eq!(fresh.tables().pool().n_free(), 20 - 4);
    assert_eq!(fresh.tables().cached_len(&shared, &tokens, Retention::All), 8);
    let bytes: Vec<u8> = store.blocks.borrow().values().flatten().copied().collect();
    assert!(!bytes.windows(5).any(|bytes| bytes == b"model"), "of a scope only the hash is stored");
}

#[test]
fn a_sequence_without_a_key_has_nothing_to_save() {
    let (store, mut cache) = (Memory::default(), cache::<f32>(20, Scaling::Dynamic));
    let id = cache.create(Retention::All).unwrap();
    append(&mut cache, id, &prompt(1, 9), 0);
    assert_eq!(cache.save_blocks(id, &store).unwrap(), 0);
    cache.free(id).unwrap();
    let error = cache.save_blocks(id, &store).unwrap_err();
    assert!(matches!(error, DiskError::Cache(Error::StaleSequence { .. })), "{error}");
}

#[test]
fn no_changed_byte_is_read_as_a_block() {
    let (store, key, tokens) = (Memory::default(), key(Salt::Shared), prompt(1, 5));
    let mut first = cache::<i8>(20, Scaling::Dynamic);
    let id = computed(&mut first, &key, &tokens);
    first.save_blocks(id, &store).unwrap();
    let (hash, bytes) = store.blocks.borrow().iter().map(|(k, v)| (*k, v.clone())).next().unwrap();
    let mut fresh = cache::<i8>(20, Scaling::Dynamic);
    let mut check = |bytes: Vec<u8>, what: String| {
        store.blocks.borrow_mut().insert(hash, bytes);
        let found = fresh.create_with_stored_prefix(&key, &tokens, Retention::All, &store);
        let (id, n_cached) = found.unwrap();
        assert_eq!((n_cached, fresh.len(id).unwrap()), (0, 0), "{what}");
        fresh.free(id).unwrap();
        assert_eq!(fresh.tables().pool().n_free(), 20, "{what}");
    };
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        check(changed, format!("byte {at}"));
        assert!(store.blocks.borrow().is_empty(), "it is removed");
    }
    for len in 0..bytes.len() {
        check(bytes[..len].to_vec(), format!("{len} bytes"));
    }
    check([&bytes[..], &[0]].concat(), "a byte more".to_owned());
}

/// Under one name, too, a block of another kind is none.
#[test]
fn blocks_of_other_caches_are_no_hit() {
    let (store, key, tokens) = (Memory::default(), key(Salt::Shared), prompt(1, 9));
    let mut first = cache::<E4M3>(20, Scaling::Static(&SCALES));
    let id = computed(&mut first, &key, &tokens);
    let save = || assert_eq!(first.save_blocks(id, &store).unwrap(), 2);
    save();
    let lookup = |store: &Memory| found::<E4M3>(store, Scaling::Static(&SCALES), &key, &tokens);
    assert_eq!(lookup(&store), 8);
    // As many bytes, of another type and by other scales.
    assert_eq!(found::<E5M2>(&store, Scaling::Static(&SCALES), &key, &tokens), 0);
    let scales = [[0.01, 0.02], [0.005, 0.02]];
    store.blocks.borrow_mut().clear();
    save();
    assert_eq!(found::<E4M3>(&store, Scaling::Static(&scales), &key, &tokens), 0);
    store.blocks.borrow_mut().clear();
    save();
    assert_eq!(found::<E4M3>(&store, Scaling::Dynamic, &key, &tokens), 0);
    assert_eq!(found::<f32>(&store, Scaling::Dynamic, &key, &tokens), 0);
}

#[test]
fn a_store_that_fails_leaves_no_sequence() {
    let (store, key, tokens) = (Memory::default(), key(Salt::Shared), prompt(1, 14));
    let mut first = cache::<f32>(20, Scaling::Dynamic);
    let id = computed(&mut first, &key, &tokens);
    // After the first block of the first round, and of the second one at once: that block is there.
    for at in [("contains", 1), ("store", 0)] {
        *store.fails_at.borrow_mut() = Some(at);
        let error = first.save_blocks(id, &store).unwrap_err();
        assert!(error.to_string().ends_with(": no disk"), "{error}");
        assert_eq!(store.blocks.borrow().len(), 1, "the first one is there");
        *store.fails_at.borrow_mut() = None;
    }
    assert_eq!(first.save_blocks(id, &store).unwrap(), 2);
    let mut fresh = cache::<f32>(20, Scaling::Dynamic);
    *store.fails_at.borrow_mut() = Some(("load", 2));
    let error = fresh.create_with_stored_prefix(&key, &tokens, Retention::All, &store);
    assert!(matches!(error, Err(DiskError::Store { .. })));
    assert_eq!((fresh.tables().n_sequences(), fresh.tables().pool().n_free()), (0, 20));
}

#[test]
fn a_full_pool_ends_the_prefix() {
    let (store, key, tokens) = (Memory::default(), key(Salt::Shared), prompt(1, 17));
    let mut first = cache::<f32>(20, Scaling::Dynamic);
    let id = computed(&mut first, &key, &tokens);
    first.save_blocks(id, &store).unwrap();
    let mut small = cache::<f32>(3, Scaling::Dynamic);
    let held = small.create(Retention::All).unwrap();
    append(&mut small, held, &[5], 0);
    let found = small.create_with_stored_prefix(&key, &tokens, Retention::All, &store);
    assert_eq!(found.unwrap().1, 8);
}

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

#[test]
fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let (key, tokens) = (key(Salt::Shared), prompt(1, 14));
    let mut first = cache::<bf16>(20, Scaling::Dynamic);
    let id = computed(&mut first, &key, &tokens);
    let store = DiskStore::open(folder.path().join("new/folder")).unwrap();
    assert_eq!(first.save_blocks(id, &store).unwrap(), 3);
    let names = files(folder.path());
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| name.extension().is_some_and(|x| x == "kv")), "{names:?}");
    let again = DiskStore::open(folder.path().join("new/folder")).unwrap();
    assert_eq!(found::<bf16>(&again, Scaling::Dynamic, &key, &tokens), 12);

    // A file that was cut is removed, and the prefix ends there.
    let lens = names.iter().map(|name| fs::metadata(name).unwrap().len()).collect::<Vec<_>>();
    for name in &names {
        let bytes = fs::read(name).unwrap();
        fs::write(name, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(found::<bf16>(&store, Scaling::Dynamic, &key, &tokens), 0);
    assert_eq!(files(folder.path()).len(), 2, "the first one was looked at");
    for name in files(folder.path()) {
        fs::remove_file(name).unwrap();
    }
    assert_eq!(first.save_blocks(id, &store).unwrap(), 3);
    let now =
        files(folder.path()).iter().map(|x| fs::metadata(x).unwrap().len()).collect::<Vec<_>>();
    assert_eq!(now, lens);
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStore::open(folder.path()).unwrap();
    let hashes = [1, 2, 3, 4].map(|i| BlockHash([i; 32]));
    for hash in &hashes {
        store.store(hash, &mut [&[0_u8; 60][..], &[hash.0[0]; 40]].into_iter()).unwrap();
    }
    let path = |hash: &BlockHash| {
        let digits = format!("{hash:?}");
        folder.path().join(&digits[..2]).join(format!("{digits}.kv"))
    };
    let age = |path: &Path, seconds: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for (hash, seconds) in hashes.iter().zip([400, 300, 200, 100]) {
        age(&path(hash), seconds);
    }
    // What another process is writing stays; what one has left behind does not.
    let [fresh, old] =
        ["1-0.partial", "2-0.partial"].map(|name| path(&hashes[0]).with_extension(name));
    for partial in [&fresh, &old] {
        fs::write(partial, b"half").unwrap();
    }
    age(&old, 7200);
    let mut bytes = [0; 100];
    assert!(store.load(&hashes[0], &mut bytes).unwrap());
    assert_eq!(bytes[59..61], [0, 1]);
    assert_eq!(store.trim(1000).unwrap(), 400);
    assert!(fresh.exists() && !old.exists());
    assert_eq!(store.trim(250).unwrap(), 200);
    let left = hashes.map(|hash| store.contains(&hash).unwrap());
    assert_eq!(left, [true, false, false, true], "the first one was read since");
    assert_eq!(store.trim(0).unwrap(), 0);
    store.remove(&hashes[0]).unwrap();
    assert!(!store.load(&hashes[0], &mut bytes).unwrap());
}

#[test]
fn writers_of_one_block_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStore::open(folder.path()).unwrap();
    let (hash, content) = (BlockHash([9; 32]), vec![7_u8; 1 << 16]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    store.store(&hash, &mut [&content[..]].into_iter()).unwrap();
                    let mut bytes = vec![0; content.len()];
                    assert!(store.load(&hash, &mut bytes).unwrap() && bytes == content);
                }
            });
        }
    });
    assert_eq!(files(folder.path()).len(), 1);
}
