//! Names of cached blocks: a chain of SHA-256 over whole blocks of tokens.
//!
//! ```text
//! key     = SHA-256("squish-kv/1" ‖ 32 zero bytes ‖ scope)
//! hash[0] = SHA-256("squish-kv/1" ‖ key           ‖ tokens of block 0)
//! hash[i] = SHA-256("squish-kv/1" ‖ hash[i - 1]   ‖ tokens of block i)
//! ```
//!
//! Tokens are `block_size` little-endian `u32`. The scope is everything besides the tokens that decides what a block holds:
//!
//! | field | bytes |
//! |---|---|
//! | `model` | length as little-endian `u64`, then the bytes |
//! | `adapter` | `00`, or `01` and as `model` |
//! | `layer_group` | little-endian `u32` |
//! | `salt` | `00` if shared, or `01` and as `model` |
//!
//! Every field can be read back from the front, so no two scopes have one encoding; a message of a block is 43 bytes and its tokens, so no
//! two blocks of whatever sizes have one either. A key and a block would need a digest of zeros to be confused.
//! Equal inputs have equal hashes in every process and on every machine; `tests/golden/hash.safetensors` has Python's.
//!
//! Why SHA-256: whoever finds two prompts with one hash is served the other's keys and values (CVE-2025-25183), and weaker hashes are no
//! faster at this size where the CPU has instructions for it. A block of 16 tokens takes two compressions, one of 32 three.

use std::fmt;

use sha2::{Digest, Sha256};

/// First bytes of every message: the format and its version.
const DOMAIN: &[u8] = b"squish-kv/1";

/// Whose sequences may find a block.
///
/// There is no default: a cache that is shared between users tells each of them, by its speed, what others have asked. The salt must come
/// from the server; one that a client may choose protects nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Salt<'a> {
    /// Everybody's who uses the same model and adapter.
    Shared,
    /// Those with the same bytes alone. They are hashed and not kept.
    Tenant(&'a [u8]),
}

/// The bytes are a secret and are not shown.
impl fmt::Debug for Salt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "Shared",
            Self::Tenant(_) => "Tenant(..)",
        })
    }
}

/// What besides the tokens decides the keys and values of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Names the weights, the numeric mode they run in and the type of the cache, for example by a fingerprint of them. A cache that outlives
    /// the process, or that serves two models, confuses those which have one name.
    pub model: &'a [u8],
    /// Names the adapter, if one is applied.
    pub adapter: Option<&'a [u8]>,
    /// Which layers the blocks are of, in a model whose layers have tables of their own (windows beside full attention); else zero.
    pub layer_group: u32,
    /// Who may find the blocks.
    pub salt: Salt<'a>,
}

impl Scope<'_> {
    /// The key that the chain of hashes starts from.
    #[must_use]
    pub fn key(&self) -> PrefixKey {
        fn bytes(hasher: &mut Sha256, bytes: &[u8]) {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        fn optional(hasher: &mut Sha256, field: Option<&[u8]>) {
            hasher.update([u8::from(field.is_some())]);
            if let Some(field) = field {
                bytes(hasher, field);
            }
        }
        let mut hasher = start(&BlockHash([0; 32]));
        bytes(&mut hasher, self.model);
        optional(&mut hasher, self.adapter);
        hasher.update(self.layer_group.to_le_bytes());
        optional(
            &mut hasher,
            match self.salt {
                Salt::Shared => None,
                Salt::Tenant(salt) => Some(salt),
            },
        );
        PrefixKey(BlockHash(hasher.finalize().into()))
    }
}

/// The digest of a [`Scope`]: sequences find each other's blocks if their keys are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey(BlockHash);

impl PrefixKey {
    /// The parent of a sequence's first block.
    #[must_use]
    pub fn root(&self) -> BlockHash {
        self.0
    }
}

/// The hash of a full block and of everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The hash of the block that holds `tokens` and follows `parent`.
    #[must_use]
    pub fn of(parent: &Self, tokens: &[u32]) -> Self {
        let mut hasher = start(parent);
        if cfg!(target_endian = "little") {
            hasher.update(bytemuck::cast_slice::<u32, u8>(tokens));
        } else {
            for token in tokens {
                hasher.update(token.to_le_bytes());
            }
        }
        Self(hasher.finalize().into())
    }
}

/// Hexadecimal digits.
impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What every message starts with.
fn start(parent: &BlockHash) -> Sha256 {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(parent.0);
    hasher
}
