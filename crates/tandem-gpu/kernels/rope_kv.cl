// Rotary position embedding of queries and keys (NeoX: number i of a head pairs with number i + HEAD_DIM / 2), and
// the write of keys and values into the KV cache, `[kv_head][position][head_dim]`.
//
// Cosines and sines come from the CPU's table, `[token][pair]` of both: the angle's rounding is part of what the model
// was trained with, and drivers' sines differ.
//
// Compiled for HEAD_DIM, HEADS, KV_HEADS, KV_F16 (1 where the cache holds 16-bit floats). A work-item has one pair of
// one head of one token; heads are first those of q, then of k, then of v.

#define PAIRS (HEAD_DIM / 2)

inline void store_kv(global uchar *cache, ulong at, float x) {
#if KV_F16
    vstore_half_rte(x, at, (global half *)cache);
#else
    ((global float *)cache)[at] = x;
#endif
}

KERNEL rope_kv(OUT(q), IN(k), IN(v), IN(angles), OUT(keys), OUT(values), const uint tokens, const uint start,
               const uint capacity) {
    OUT_PTR(float, q);
    IN_PTR(float, k);
    IN_PTR(float, v);
    IN_PTR(float2, angles);
    OUT_PTR(uchar, keys);
    OUT_PTR(uchar, values);
    const uint all_heads = HEADS + 2 * KV_HEADS;
    const uint i = get_global_id(0);
    const uint pair = i % PAIRS, any_head = i / PAIRS % all_heads, token = i / PAIRS / all_heads;
    if (token >= tokens) {
        return;
    }
    const float2 angle = angles[token * PAIRS + pair];
    if (any_head < HEADS) {
        global float *x = q + ((ulong)token * HEADS + any_head) * HEAD_DIM + pair;
        const float a = x[0], b = x[PAIRS];
        x[0] = a * angle.x - b * angle.y;
        x[PAIRS] = b * angle.x + a * angle.y;
        return;
    }
    const uint head = (any_head - HEADS) % KV_HEADS;
    const ulong from = ((ulong)token * KV_HEADS + head) * HEAD_DIM + pair;
    const ulong to = ((ulong)head * capacity + start + token) * HEAD_DIM + pair;
    if (any_head < HEADS + KV_HEADS) {
        const float a = k[from], b = k[from + PAIRS];
        store_kv(keys, to, a * angle.x - b * angle.y);
        store_kv(keys, to + PAIRS, b * angle.x + a * angle.y);
    } else {
        store_kv(values, to, v[from]);
        store_kv(values, to + PAIRS, v[from + PAIRS]);
    }
}
