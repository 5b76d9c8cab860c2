//! k-means of tokens, without a pass over their numbers after the first (S. P. Lloyd, 1982).
//!
//! ```text
//! S[c][i] = Σ G[i][j]                       over the tokens j of cluster c, m of them; G the products of centered tokens
//! |x[i] − mean(c)|² = G[i][i] − 2 S[c][i] / m + Σ S[c][j] / m²
//! ```
//!
//! 1. Start from `k` tokens ([`Start`]), each a cluster.
//! 2. Each token goes to the nearest mean; it stays where it is unless another is nearer, and of equally near ones takes the first.
//! 3. A cluster without tokens takes the token that is farthest from its own mean, out of a cluster that has others; of equally far
//!    ones the lowest index.
//! 4. Again from 2, until nothing moves.
//!
//! Sums are in `f64`, and only those of clusters that changed are taken again. So equal tokens are equally far from everything, and the
//! result is a function of the products alone: the same on all levels that have a fused multiply-add.

use ndarray::ArrayView2;

use super::{TokensWorkspace, gram::Gram, selection::Assignment};
use crate::{AttnError, Result};

/// Options of [`TokensWorkspace::k_means_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KMeans {
    /// The tokens that are the first means.
    pub start: Start,
    /// Rounds at most.
    pub max_rounds: usize,
}

impl Default for KMeans {
    fn default() -> Self {
        Self { start: Start::FarthestFirst, max_rounds: 100 }
    }
}

/// The tokens that are the first means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// The token farthest from the mean of all, then again and again the one farthest from those that are taken; of equally far ones the
    /// lowest index (T. F. Gonzalez, 1985).
    #[default]
    FarthestFirst,
    /// Any token, then again and again one by chance, in proportion to its squared distance from those that are taken (D. Arthur,
    /// S. Vassilvitskii: k-means++, 2007). The same seed makes the same choice.
    PlusPlus {
        /// Seed of the generator.
        seed: u64,
    },
}

/// Room for clusters.
#[derive(Debug, Default)]
pub(super) struct KMeansScratch {
    /// The means to begin with.
    seeds: Vec<u32>,
    /// Squared distance of each token from the seeds so far; negative for these.
    gaps: Vec<f64>,
    /// `S`, `[k, n_tokens]`.
    sums: Vec<f64>,
    /// Of each cluster.
    clusters: Vec<Cluster>,
    /// The cluster of each token, and that of the round before.
    of_tokens: Vec<u32>,
    before: Vec<u32>,
    /// Squared distance of each token from the mean of its cluster, less the square of the token.
    distances: Vec<f64>,
    /// The medoid and the cluster, in order.
    medoids: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    n_tokens: usize,
    /// `Σ S[c][j]` over its tokens.
    sum: f64,
    is_changed: bool,
}

impl TokensWorkspace {
    /// Groups `tokens`, `[n_tokens, dim]`, into `k` clusters, or as many as there are tokens. The target of a group is its medoid, the
    /// token nearest to the mean, of equally near ones the lowest index; groups are in the order of these. Memory is 4 bytes for each pair
    /// of tokens, and 8 for each pair of a token and a cluster.
    ///
    /// Centroids are made by [`merge_into`](super::merge_into) with [`Merge::Mean`](super::Merge::Mean), and the medoids alone are kept by
    /// [`Assignment::targets_into`] and [`gather_into`](super::gather_into).
    ///
    /// # Errors
    ///
    /// [`AttnError::Value`] if `k` is 0 and there are tokens; [`AttnError::NotFinite`] of a token that is not finite, or whose square is
    /// not; [`AttnError::Layout`] if rows are not contiguous; [`AttnError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_attn::{Assignment, TokensWorkspace, ndarray::array, tokens::KMeans};
    ///
    /// let tokens = array![[0.0, 1.0], [9.0, 1.0], [0.0, 2.0], [8.0, 1.0], [0.0, 3.0], [7.0, 1.0]];
    /// let mut clusters = Assignment::default();
    /// TokensWorkspace::new().k_means_into(tokens.view(), 2, KMeans::default(), &mut clusters)?;
    /// assert_eq!((clusters.groups(), clusters.targets()), (&[0, 1, 0, 1, 0, 1][..], &[2, 3][..]));
    /// # Ok::<(), squish_attn::AttnError>(())
    /// ```
    pub fn k_means_into(
        &mut self,
        tokens: ArrayView2<'_, f32>,
        k: usize,
        options: KMeans,
        out: &mut Assignment,
    ) -> Result<()> {
        let n_tokens = tokens.nrows();
        AttnError::check_value("k", k as f64, k > 0 || n_tokens == 0, "at least 1")?;
        self.gram.compute(self.isa, &mut self.products, tokens)?;
        if k >= n_tokens {
            out.leave_all(n_tokens);
            return Ok(());
        }
        let (gram, scratch) = (&self.gram, &mut self.k_means);
        let missing = (k * n_tokens).saturating_sub(scratch.sums.len());
        scratch.sums.try_reserve(missing).map_err(|_| AttnError::Memory {
            what: "sums of clusters",
            bytes: (k * n_tokens).saturating_mul(size_of::<f64>()),
        })?;
        scratch.sums.resize(k * n_tokens, 0.0);
        scratch.choose_seeds(gram, k, options.start);
        scratch.begin(gram);
        for _ in 0..options.max_rounds {
            if !scratch.round(gram) {
                break;
            }
        }
        scratch.update_sums(gram);
        scratch.find_medoids(gram);
        out.begin(n_tokens);
        for (group, &(medoid, cluster)) in scratch.medoids.iter().enumerate() {
            let of_tokens = scratch.of_tokens.iter().enumerate();
            let members = of_tokens.filter(|&(_, &of_token)| of_token == cluster);
            members.for_each(|(token, _)| out.assign(token as u32, group as u32));
            out.add_group(medoid);
        }
        out.finish();
        Ok(())
    }
}

impl KMeansScratch {
    fn choose_seeds(&mut self, gram: &Gram, k: usize, start: Start) {
        let Self { seeds, gaps, .. } = self;
        seeds.clear();
        gaps.clear();
        // From the mean of all, which is the origin.
        gaps.extend(gram.squares().iter().map(|&square| f64::from(square)));
        let mut random = match start {
            Start::FarthestFirst => None,
            Start::PlusPlus { seed } => Some(SplitMix64(seed)),
        };
        while seeds.len() < k {
            let seed = match &mut random {
                None => farthest(gaps),
                Some(random) if seeds.is_empty() => random.below(gaps.len()),
                Some(random) => by_chance(gaps, random.uniform()),
            };
            if seeds.is_empty() {
                gaps.fill(f64::INFINITY);
            }
            seeds.push(seed as u32);
            let own = f64::from(gram.squares()[seed]);
            let pairs = gram.row(seed).iter().zip(gram.squares());
            for (gap, (&product, &other)) in gaps.iter_mut().zip(pairs) {
                let square = own + f64::from(other) - 2.0 * f64::from(product);
                // A seed stays below 0.
                *gap = gap.min(square.max(0.0));
            }
            gaps[seed] = -1.0;
        }
    }

    /// Each token to the nearest seed, and every cluster has one.
    fn begin(&mut self, gram: &Gram) {
        let Self { seeds, sums, clusters, of_tokens, distances, .. } = self;
        let n_tokens = gram.squares().len();
        clusters.clear();
        for (&seed, sums) in seeds.iter().zip(sums.chunks_exact_mut(n_tokens)) {
            let products = gram.row(seed as usize);
            sums.iter_mut().zip(products).for_each(|(sum, &product)| *sum = f64::from(product));
            let sum = f64::from(gram.squares()[seed as usize]);
            clusters.push(Cluster { n_tokens: 1, sum, is_changed: false });
        }
        of_tokens.clear();
        of_tokens.resize(n_tokens, 0);
        distances.clear();
        distances.resize(n_tokens, f64::INFINITY);
        self.find_nearest();
        self.fill_clusters(gram);
        self.clusters.iter_mut().for_each(|cluster| cluster.is_changed = true);
    }

    /// A round: the means, and each token to the nearest. Whether one moved.
    fn round(&mut self, gram: &Gram) -> bool {
        self.update_sums(gram);
        let Self { sums, clusters, of_tokens, before, distances, .. } = self;
        before.clear();
        before.extend_from_slice(of_tokens);
        let n_tokens = of_tokens.len();
        for (token, (distance, &c)) in distances.iter_mut().zip(&*of_tokens).enumerate() {
            let c = c as usize;
            *distance = clusters[c].distance(sums[c * n_tokens + token]);
        }
        self.find_nearest();
        self.fill_clusters(gram);
        let Self { clusters, of_tokens, before, .. } = self;
        for (&now, &before) in of_tokens.iter().zip(&*before).filter(|(now, before)| now != before)
        {
            clusters[now as usize].is_changed = true;
            clusters[before as usize].is_changed = true;
        }
        of_tokens != before
    }

    /// The sums of clusters that changed.
    fn update_sums(&mut self, gram: &Gram) {
        let Self { sums, clusters, of_tokens, .. } = self;
        let of_tokens = &**of_tokens;
        let each = clusters.iter_mut().zip(sums.chunks_exact_mut(of_tokens.len())).enumerate();
        for (c, (cluster, sums)) in each.filter(|(_, (cluster, _))| cluster.is_changed) {
            sums.fill(0.0);
            let members =
                || (0..of_tokens.len()).filter(move |&token| of_tokens[token] as usize == c);
            for token in members() {
                let products = gram.row(token);
                sums.iter_mut().zip(products).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            cluster.sum = members().map(|token| sums[token]).sum();
            cluster.is_changed = false;
        }
    }

    /// Each token to the nearest mean, if one is nearer than that of its cluster.
    fn find_nearest(&mut self) {
        let Self { sums, clusters, of_tokens, distances, .. } = self;
        for (c, sums) in sums.chunks_exact(of_tokens.len()).enumerate() {
            let cluster = clusters[c];
            for ((of_token, least), &sum) in of_tokens.iter_mut().zip(&mut *distances).zip(sums) {
                let distance = cluster.distance(sum);
                if distance < *least {
                    (*of_token, *least) = (c as u32, distance);
                }
            }
        }
    }

    /// Counts the tokens of clusters, and gives one to each that has none.
    fn fill_clusters(&mut self, gram: &Gram) {
        let Self { clusters, of_tokens, distances, .. } = self;
        for cluster in &mut *clusters {
            cluster.n_tokens = 0;
        }
        for &c in &*of_tokens {
            clusters[c as usize].n_tokens += 1;
        }
        for c in 0..clusters.len() {
            if clusters[c].n_tokens > 0 {
                continue;
            }
            let (mut farthest, mut most) = (None, f64::NEG_INFINITY);
            for (token, (square, own)) in gram.squares().iter().zip(&*distances).enumerate() {
                let distance = (f64::from(*square) + own).max(0.0);
                if distance > most && clusters[of_tokens[token] as usize].n_tokens > 1 {
                    (farthest, most) = (Some(token), distance);
                }
            }
            // There is one, since there are fewer clusters than tokens.
            if let Some(token) = farthest {
                clusters[of_tokens[token] as usize].n_tokens -= 1;
                clusters[c].n_tokens = 1;
                of_tokens[token] = c as u32;
                distances[token] = -f64::from(gram.squares()[token]);
            }
        }
    }

    fn find_medoids(&mut self, gram: &Gram) {
        let Self { sums, clusters, of_tokens, medoids, .. } = self;
        medoids.clear();
        let each = clusters.iter().zip(sums.chunks_exact(of_tokens.len()));
        for (c, (cluster, sums)) in each.enumerate() {
            let (mut medoid, mut least) = (0, f64::INFINITY);
            for (token, (&sum, &square)) in sums.iter().zip(gram.squares()).enumerate() {
                let distance = f64::from(square) + cluster.distance(sum);
                if of_tokens[token] as usize == c && distance < least {
                    (medoid, least) = (token as u32, distance);
                }
            }
            medoids.push((medoid, c as u32));
        }
        medoids.sort_unstable();
    }
}

impl Cluster {
    /// The squared distance of a token from the mean, less the square of the token, which is the same for all clusters.
    fn distance(self, sum: f64) -> f64 {
        let n = self.n_tokens as f64;
        self.sum / (n * n) - 2.0 * sum / n
    }
}

/// The index of the largest, the lowest of equal ones.
fn farthest(gaps: &[f64]) -> usize {
    let most = gaps.iter().enumerate().reduce(|most, gap| if gap.1 > most.1 { gap } else { most });
    most.map_or(0, |(i, _)| i)
}

/// The index at `share` of the sum of all that are above 0; the first that is not below 0, if none is.
fn by_chance(gaps: &[f64], share: f64) -> usize {
    let above = |gaps: &[f64]| gaps.iter().map(|gap| gap.max(0.0)).sum::<f64>();
    let mut rest = share * above(gaps);
    let mut last = None;
    for (i, &gap) in gaps.iter().enumerate().filter(|(_, gap)| **gap > 0.0) {
        if rest < gap {
            return i;
        }
        rest -= gap;
        last = Some(i);
    }
    // What rounding left over.
    last.or_else(|| gaps.iter().position(|&gap| gap >= 0.0)).unwrap_or(0)
}

/// The generator of G. L. Steele, D. Lea and C. H. Flood (OOPSLA 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One of `0..n`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }
}
