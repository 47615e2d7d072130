// Products of weights in rows, as in a file, and activations in f32: the exact path, and the router.
//
// Compiled for KIND: 32, 16 and 17 for f32, f16 and bf16. A work-group has 16 rows, a team each, and TOKENS tokens;
// the lanes of a team share the columns. `flags` are those of `matmul_packed.cl`.

#define HAS_BIAS 1u
#define ADD_TO 2u

inline float weight(global const uchar *weights, ulong at) {
#if KIND == 32
    return ((global const float *)weights)[at];
#elif KIND == 16
    return vload_half(at, (global const half *)weights);
#else
    return as_float((uint)((global const ushort *)weights)[at] << 16);
#endif
}

// Group ids: 16 rows, block of tokens.
KERNEL matvec_rows(IN(weights), const uint rows, const uint cols, IN(bias), IN(x), const uint tokens, OUT(out),
                   const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(float, bias);
    IN_PTR(float, x);
    OUT_PTR(float, out);
    local float partial[TEAMS * TOKENS * LANES];
    const uint row = get_group_id(0) * TEAMS + TEAM, first = get_group_id(1) * TOKENS;
    const uint my_row = min(row, rows - 1);
    float sums[TOKENS];
    for (uint t = 0; t < TOKENS; t++) {
        sums[t] = 0.0f;
    }
    for (uint col = LANE; col < cols; col += LANES) {
        const float w = weight(weights, (ulong)my_row * cols + col);
        for (uint t = 0; t < TOKENS; t++) {
            sums[t] += w * x[(ulong)min(first + t, tokens - 1) * cols + col];
        }
    }
    for (uint t = 0; t < TOKENS; t++) {
        partial[(TEAM * TOKENS + t) * LANES + LANE] = sums[t];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint i = get_local_id(0), token = first + i / TEAMS, out_row = get_group_id(0) * TEAMS + i % TEAMS;
    if (i < TEAMS * TOKENS && token < tokens && out_row < rows) {
        float sum = 0.0f;
        for (uint lane = 0; lane < LANES; lane++) {
            sum += partial[((i % TEAMS) * TOKENS + i / TEAMS) * LANES + lane];
        }
        if (flags & HAS_BIAS) {
            sum += bias[out_row];
        }
        const ulong at = (ulong)token * rows + out_row;
        out[at] = (flags & ADD_TO) ? out[at] + sum : sum;
    }
}
