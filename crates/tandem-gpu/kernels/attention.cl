// Causal attention over the pages of the KV cache (kv.cl), with grouped queries and an optional sliding window.
//
// A work-group has one query head of one token, and a span of the keys it sees: the groups of all spans work at the
// same time, which is what a single token over a long context needs. Softmax is computed on the way, with a running
// maximum (arXiv 2205.14135). Where there are several spans, `attention_join` puts their parts together.
//
// Compiled for HEADS and what kv.cl is compiled for, HEAD_DIM being a multiple of 4 up to 256.

#define PARTS (GROUP / HEAD_DIM) // work-items that share the keys of one number of the result
#define PART_FLOATS (HEAD_DIM + 2)

// The dot product of a query with a row of keys.
inline float key_dot(local const float *query, global const uchar *part, uint row) {
    const uint at = row * HEAD_DIM;
#if KV_BITS == 8
    global const half *scales = (global const half *)(part + KV_NUMBERS) + at / KV_BLOCK;
    float sum = 0.0f;
    for (uint block = 0; block < HEAD_DIM / KV_BLOCK; block++) {
        float8 terms = (float8)(0.0f);
        for (uint d = block * KV_BLOCK; d < (block + 1) * KV_BLOCK; d += 8) {
            terms += vload8(0, query + d) * convert_float8(vload8(0, (global const char *)part + at + d));
        }
        const float4 pairs = terms.lo + terms.hi;
        sum += vload_half(block, scales) * ((pairs.x + pairs.y) + (pairs.z + pairs.w));
    }
    return sum;
#else
    float4 terms = (float4)(0.0f);
    for (uint d = 0; d < HEAD_DIM; d += 4) {
#if KV_BITS == 16
        terms += vload4(0, query + d) * vload_half4(0, (global const half *)part + at + d);
#else
        terms += vload4(0, query + d) * vload4(0, (global const float *)part + at + d);
#endif
    }
    return (terms.x + terms.y) + (terms.z + terms.w);
#endif
}

// Number d of a row of values.
inline float value(global const uchar *part, uint row, uint d) {
    const uint at = row * HEAD_DIM + d;
#if KV_BITS == 8
    return (float)((global const char *)part)[at] * vload_half(at / KV_BLOCK, (global const half *)(part + KV_NUMBERS));
#elif KV_BITS == 16
    return vload_half(at, (global const half *)part);
#else
    return ((global const float *)part)[at];
#endif
}

// `window` is 0 where there is none. With one span results go to `out`, else to `parts`, [query][span] of the weighted
// sum, its maximum and its sum. Group ids: head, token, span.
KERNEL attention(IN(q), IN(cache), IN(table), const uint start, const uint page_bytes, const uint window,
                 const uint span_keys, OUT(out), OUT(parts)) {
    IN_PTR(float, q);
    IN_PTR(uchar, cache);
    IN_PTR(uint, table);
    OUT_PTR(float, out);
    OUT_PTR(float, parts);
    local float query[HEAD_DIM], weights[GROUP], scratch[GROUP];
    local ulong pages[GROUP]; // of the keys that are being looked at
    const uint i = get_local_id(0);
    const uint head = get_group_id(0), token = get_group_id(1), span = get_group_id(2), spans = get_num_groups(2);
    const ulong row = (ulong)token * HEADS + head;
    const uint kv_head = head / (HEADS / KV_HEADS);
    if (i < HEAD_DIM) {
        query[i] = q[row * HEAD_DIM + i] / sqrt((float)HEAD_DIM);
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    const uint visible_end = start + token + 1;
    const uint visible_start = window > 0 && visible_end > window ? visible_end - window : 0;
    // A span without keys of this query's leaves a sum of 0.
    const uint from = max(visible_start, span * span_keys), to = min(visible_end, (span + 1) * span_keys);
    const uint col = i % HEAD_DIM, part = i / HEAD_DIM;
    float largest = -INFINITY, sum = 0.0f, mixed = 0.0f;
    for (uint first = from; first < to; first += GROUP) {
        const uint count = min((uint)GROUP, to - first);
        float score = -INFINITY;
        if (i < count) {
            const ulong page = kv_page(table, first + i, page_bytes);
            pages[i] = page;
            score = key_dot(query, cache + page, kv_row(kv_head, first + i));
        }
        const float new_largest = fmax(largest, group_max(score, scratch));
        // NaN is no maximum, but must not vanish.
        const float weight = i < count ? exp(score - new_largest) : 0.0f;
        const float factor = exp(largest - new_largest);
        weights[i] = weight;
        sum = sum * factor + group_sum(weight, scratch);
        mixed *= factor;
        if (part < PARTS) {
            for (uint k = part; k < count; k += PARTS) {
                global const uchar *values = cache + pages[k] + KV_PART;
                mixed += weights[k] * value(values, kv_row(kv_head, first + k), col);
            }
        }
        largest = new_largest;
        barrier(CLK_LOCAL_MEM_FENCE);
    }

    scratch[i] = mixed;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (i < HEAD_DIM) {
        for (uint p = 1; p < PARTS; p++) {
            mixed += scratch[p * HEAD_DIM + i];
        }
        if (spans == 1) {
            out[row * HEAD_DIM + i] = mixed / sum;
        } else {
            global float *mine = parts + (row * spans + span) * PART_FLOATS;
            mine[i] = mixed;
            if (i == 0) {
                mine[HEAD_DIM] = largest;
                mine[HEAD_DIM + 1] = sum;
            }
        }
    }
}

// Puts the spans of each query together: sums relative to a span's maximum are brought to the common one. Group ids:
// head, token.
KERNEL attention_join(IN(parts), const uint spans, OUT(out)) {
    IN_PTR(float, parts);
    OUT_PTR(float, out);
    const uint i = get_local_id(0);
    const ulong row = (ulong)get_group_id(1) * HEADS + get_group_id(0);
    global const float *mine = parts + row * spans * PART_FLOATS;
    if (i >= HEAD_DIM) {
        return;
    }
    float largest = -INFINITY;
    for (uint s = 0; s < spans; s++) {
        largest = fmax(largest, mine[s * PART_FLOATS + HEAD_DIM]);
    }
    float mixed = 0.0f, sum = 0.0f;
    for (uint s = 0; s < spans; s++) {
        global const float *span = mine + s * PART_FLOATS;
        if (span[HEAD_DIM + 1] != 0.0f) {
            const float factor = exp(span[HEAD_DIM] - largest);
            mixed += factor * span[i];
            sum += factor * span[HEAD_DIM + 1];
        }
    }
    out[row * HEAD_DIM + i] = mixed / sum;
}
