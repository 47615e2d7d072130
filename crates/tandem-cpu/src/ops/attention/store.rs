//! Keys and values into the cache.

use tandem_memory::{KvCache, KvError};

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::ops::Rope;
use crate::scratch::with_scratch;

/// Tokens handed to a thread at a time. One token is not worth a thread's start: the caller stores it.
const TOKENS: usize = 16;

/// Stores the keys and values (`[token][kv_head][head_dim]`) of tokens of `layer`, the first of them at position `start`.
/// Keys are rotated on the way.
///
/// # Errors
/// As [`KvCache::write`].
#[allow(unsafe_code)]
pub fn store_kv(
    cpu: &Cpu,
    cache: &mut KvCache,
    layer: usize,
    start: usize,
    (k, v): (&[f32], &[f32]),
    rope: &Rope,
) -> Result<(), KvError> {
    let view = cache.layer(layer);
    let (heads, dim) = (view.kv_heads(), view.head_dim());
    let mut parts = cache.parts(layer, start, k, v, TOKENS)?;
    let (count, chunk) =
        (parts.len(), if k.len() > TOKENS * heads * dim { 1 } else { parts.len() });
    let parts = Disjoint::new(&mut parts);
    cpu.team().for_each_chunk(count, chunk, &|items| {
        // SAFETY: chunks do not overlap.
        for part in unsafe { parts.part(items.start, items.len()) } {
            with_scratch([dim], |[key]| {
                for token in part.tokens() {
                    let row = (token * heads + part.head()) * dim;
                    key.copy_from_slice(&k[row..][..dim]);
                    rope.apply(key, start + token);
                    part.write(token, key, &v[row..][..dim]);
                }
            });
        }
    });
    Ok(())
}
