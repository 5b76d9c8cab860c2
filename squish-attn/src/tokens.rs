//! Fewer vision tokens: which to keep, and which to merge.
//!
//! | method | by | what remains |
//! |---|---|---|
//! | [`largest_into`](TokensWorkspace::largest_into) | any scores | the largest |
//! | [`fast_v_into`](TokensWorkspace::fast_v_into) (arXiv 2403.06764) | attention within a prompt | the largest of an image, and the text |
//! | [`outliers_into`](TokensWorkspace::outliers_into) (of arXiv 2403.15388) | attention | those beyond the upper fence |
//! | [`magnitude_into`](TokensWorkspace::magnitude_into) | norms | the largest |
//! | [`vision_zip_into`](TokensWorkspace::vision_zip_into) (arXiv 2412.04467) | attention and keys | dominant tokens, and contextual ones |
//! | [`pru_merge_into`](TokensWorkspace::pru_merge_into) (arXiv 2403.15388) | attention and keys | outliers with their like, the rest as one |
//! | [`tome_into`](TokensWorkspace::tome_into) (arXiv 2210.09461) | keys | all but `r`, which are merged into others |
//! | [`dpc_knn_into`](TokensWorkspace::dpc_knn_into) (arXiv 2204.08680) | distances | clusters around density peaks |
//! | [`k_means_into`](TokensWorkspace::k_means_into) | distances | clusters around means |
//!
//! A method says what is to be done, as indices: a [`Selection`], an [`Assignment`] or a [`Mixture`]. No token is moved before
//! [`gather_into`], [`merge_into`] or [`mix_into`] does it, to hidden states as well as to keys and values. The attention that tokens
//! receive is [`attention_mass_into`](TokensWorkspace::attention_mass_into); tokens that were merged are attended to in proportion to their
//! sizes by [`widen_keys_into`].
//!
//! **Ties** go to the lowest index; each method says which. NaN and infinities are refused by name. Of no tokens nothing remains, and of
//! more than there are, all. To keep none is a result where tokens are selected, and an error where each must be in a group.
//!
//! **Levels.** Products of tokens are equal on all levels with a fused multiply-add, and so are assignments where no sum over lanes decides
//! them: that of squares in cosines and norms may differ in the last place. On one level a result is the same each time.

mod dpc_knn;
mod gather;
mod gram;
mod k_means;
mod mass;
mod products;
mod pru_merge;
mod select;
mod selection;
mod sizes;
mod tome;
mod vision_zip;

use squish_kernels::Isa;

use self::{
    dpc_knn::DpcScratch, gram::Gram, k_means::KMeansScratch, products::Products,
    select::TopScratch, tome::TomeScratch, vision_zip::Lists,
};
use crate::attention::MassScratch;

pub use dpc_knn::DpcKnn;
pub use gather::{Merge, gather_into, merge_into, mix_into};
pub use k_means::{KMeans, Start};
pub use pru_merge::{PruKeep, PruMerge, Supplement};
pub use select::{Fences, Keep};
pub use selection::{Assignment, Mixture, Selection};
pub use sizes::{widen_keys_into, widen_queries_into};
pub use tome::ClassToken;

/// Room for what the methods compute, which grows with the largest call: one that is no larger than those before allocates nothing, if what
/// its result is written to has been as large, too.
#[derive(Debug)]
pub struct TokensWorkspace {
    isa: Isa,
    top: TopScratch,
    products: Products,
    /// Of rows with themselves.
    squares: Vec<f32>,
    /// What rows are multiplied by to have norm 1.
    inverses: Vec<f32>,
    lists: Lists,
    tome: TomeScratch,
    gram: Gram,
    k_means: KMeansScratch,
    dpc: DpcScratch,
    mass: MassScratch,
}

impl TokensWorkspace {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::new_with(Isa::detect())
    }

    #[doc(hidden)]
    #[must_use]
    pub fn new_with(isa: Isa) -> Self {
        Self {
            isa,
            top: TopScratch::default(),
            products: Products::default(),
            squares: Vec::new(),
            inverses: Vec::new(),
            lists: Lists::default(),
            tome: TomeScratch::default(),
            gram: Gram::default(),
            k_means: KMeansScratch::default(),
            dpc: DpcScratch::default(),
            mass: MassScratch::default(),
        }
    }
}

impl Default for TokensWorkspace {
    fn default() -> Self {
        Self::new()
    }
}
