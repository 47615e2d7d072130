// Rotary position embedding of queries and keys (NeoX: number i of a head pairs with number i + HEAD_DIM / 2), and
// the write of keys and values into the pages of the KV cache (kv.cl).
//
// Cosines and sines come from the CPU's table, `[token][pair]` of both: the angle's rounding is part of what the model
// was trained with, and drivers' sines differ.
//
// Compiled for HEADS and what kv.cl is compiled for. The first work-items have a pair of a query's head each, which they
// rotate in place; the others have four numbers of a key's or value's head, tokens with first all keys and then all values.

#define PAIRS (HEAD_DIM / 2)
#define FOURS (HEAD_DIM / 4)

// Number j of a head, rotated. It is read from where nobody writes.
inline float rotated(global const float *x, global const float2 *angles, uint j) {
    const float2 angle = angles[j % PAIRS];
    return j < PAIRS ? x[j] * angle.x - x[j + PAIRS] * angle.y : x[j] * angle.x + x[j - PAIRS] * angle.y;
}

// Stores four numbers of a row, from number d on. In 8 bits all work-items of a group must come here, those with
// nothing to store too: eight neighbours have a block.
inline void kv_store4(bool any, global uchar *part, uint row, uint d, float4 x, local uint *scratch) {
    const uint at = row * HEAD_DIM + d;
#if KV_BITS == 8
    // GGML's Q8_0; a block with a number that is not finite is NaN as a whole, as on the CPU.
    const float largest = as_float(block_max(magnitude(x), scratch));
    const bool finite = isfinite(largest);
    const float scale = largest / 127.0f;
    const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
    if (any) {
        vstore4(finite ? convert_char4_sat(round(x * inverse)) : (char4)(0), 0, (global char *)part + at);
        if (d % KV_BLOCK == 0) {
            vstore_half_rte(finite ? scale : NAN, at / KV_BLOCK, (global half *)(part + KV_NUMBERS));
        }
    }
#elif KV_BITS == 16
    if (any) {
        vstore_half4_rte(x, 0, (global half *)part + at);
    }
#else
    if (any) {
        vstore4(x, 0, (global float *)part + at);
    }
#endif
}

KERNEL rope_kv(OUT(q), IN(k), IN(v), IN(angles), OUT(cache), IN(table), const uint tokens, const uint start,
               const uint page_bytes) {
    OUT_PTR(float, q);
    IN_PTR(float, k);
    IN_PTR(float, v);
    IN_PTR(float2, angles);
    OUT_PTR(uchar, cache);
    IN_PTR(uint, table);
    local uint scratch[GROUP];
    const uint i = get_global_id(0), queries = tokens * HEADS * PAIRS;
    if (i < queries) {
        const uint pair = i % PAIRS, head = i / PAIRS % HEADS, token = i / PAIRS / HEADS;
        global float *x = q + ((ulong)token * HEADS + head) * HEAD_DIM + pair;
        const float2 angle = angles[token * PAIRS + pair];
        const float a = x[0], b = x[PAIRS];
        x[0] = a * angle.x - b * angle.y;
        x[PAIRS] = b * angle.x + a * angle.y;
    }
    const uint n = i - queries, any_head = n / FOURS % (2 * KV_HEADS), token = n / FOURS / (2 * KV_HEADS);
    const uint d = n % FOURS * 4, head = any_head % KV_HEADS, position = start + token;
    const bool any = i >= queries && token < tokens, is_key = any_head < KV_HEADS;
    float4 x = (float4)(0.0f);
    global uchar *part = cache;
    if (any) {
        const ulong from = ((ulong)token * KV_HEADS + head) * HEAD_DIM;
        part += kv_page(table, position, page_bytes);
        if (is_key) {
            global const float2 *angle = angles + token * PAIRS;
            global const float *key = k + from;
            x = (float4)(rotated(key, angle, d), rotated(key, angle, d + 1), rotated(key, angle, d + 2),
                         rotated(key, angle, d + 3));
        } else {
            part += KV_PART;
            x = vload4(0, v + from + d);
        }
    }
    kv_store4(any, part, kv_row(head, position), d, x, scratch);
}
