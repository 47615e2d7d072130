// Products of weights in rows, as in a file, and activations in f32: the exact path, and the router.
//
// Compiled for KIND: 32, 16 and 17 for f32, f16 and bf16. A work-group has 16 rows, a team each, and TOKENS tokens;
// the lanes of a team share the columns. `flags` are those of `matmul_packed.cl`.

#define HAS_BIAS 1u
#define ADD_TO 2u
#define SELECT 4u
// Where there is little to do with a weight, more of them are asked for ahead.
#define COLS_AHEAD (8 / TOKENS)

inline float weight(global const uchar *weights, ulong at) {
#if KIND == 32
    return ((global const float *)weights)[at];
#elif KIND == 16
    return vload_half(at, (global const half *)weights);
#else
    return as_float((uint)((global const ushort *)weights)[at] << 16);
#endif
}

// The team's part of the products of row `row` and the rows of `x` that are named.
inline void add_columns(global const uchar *weights, uint row, uint cols, global const float *x, const uint *x_rows,
                        local float *partial) {
    float sums[TOKENS];
    for (uint t = 0; t < TOKENS; t++) {
        sums[t] = 0.0f;
    }
    __attribute__((opencl_unroll_hint(COLS_AHEAD)))
    for (uint col = LANE; col < cols; col += LANES) {
        const float w = weight(weights, (ulong)row * cols + col);
        for (uint t = 0; t < TOKENS; t++) {
            sums[t] += w * x[(ulong)x_rows[t] * cols + col];
        }
    }
    for (uint t = 0; t < TOKENS; t++) {
        partial[(TEAM * TOKENS + t) * LANES + LANE] = sums[t];
    }
}

// Adds up what the lanes of each team have, and writes it to rows `first` to `end` of `out`.
inline void store_rows(local const float *partial, global const float *bias, uint rows, uint first, uint end,
                       global float *out, uint flags) {
    const uint i = get_local_id(0), token = first + i / TEAMS, row = get_group_id(0) * TEAMS + i % TEAMS;
    if (i < TEAMS * TOKENS && token < end && row < rows) {
        float sum = 0.0f;
        for (uint lane = 0; lane < LANES; lane++) {
            sum += partial[((i % TEAMS) * TOKENS + i / TEAMS) * LANES + lane];
        }
        if (flags & HAS_BIAS) {
            sum += bias[row];
        }
        const ulong at = (ulong)token * rows + row;
        out[at] = (flags & ADD_TO) ? out[at] + sum : sum;
    }
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
    uint x_rows[TOKENS];
    for (uint t = 0; t < TOKENS; t++) {
        x_rows[t] = min(first + t, tokens - 1);
    }
    add_columns(weights, min(row, rows - 1), cols, x, x_rows, partial);
    barrier(CLK_LOCAL_MEM_FENCE);
    store_rows(partial, bias, rows, first, tokens, out, flags);
}

// Where rows are too few for a whole device, as the router's: a work-group has one row, whose columns all of its
// work-items share. Group ids: row, block of tokens.
KERNEL matvec_row(IN(weights), const uint rows, const uint cols, IN(bias), IN(x), const uint tokens, OUT(out),
                  const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(float, bias);
    IN_PTR(float, x);
    OUT_PTR(float, out);
    local float scratch[GROUP];
    const uint row = get_group_id(0), first = get_group_id(1) * TOKENS;
    float sums[TOKENS];
    for (uint t = 0; t < TOKENS; t++) {
        sums[t] = 0.0f;
    }
    __attribute__((opencl_unroll_hint(COLS_AHEAD)))
    for (uint col = get_local_id(0); col < cols; col += GROUP) {
        const float w = weight(weights, (ulong)row * cols + col);
        for (uint t = 0; t < TOKENS; t++) {
            sums[t] += w * x[(ulong)min(first + t, tokens - 1) * cols + col];
        }
    }
    for (uint t = 0; t < TOKENS; t++) {
        const float sum = group_sum(sums[t], scratch);
        if (get_local_id(0) == 0 && first + t < tokens) {
            const float with_bias = sum + ((flags & HAS_BIAS) ? bias[row] : 0.0f);
            const ulong at = (ulong)(first + t) * rows + row;
            out[at] = (flags & ADD_TO) ? out[at] + with_bias : with_bias;
        }
    }
}

// Products of the uses of experts, as in `matmul_packed.cl`. Group ids: 16 rows, expert, block of the expert's uses.
KERNEL experts_rows(IN(weights), IN(matrices), const uint rows, const uint cols, IN(starts), IN(use_tokens),
                    const uint uses, const ulong wanted, const uint base, const uint results, IN(x), OUT(out),
                    const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(ulong, matrices);
    IN_PTR(uint, starts);
    IN_PTR(uint, use_tokens);
    IN_PTR(float, x);
    OUT_PTR(float, out);
    local float partial[TEAMS * TOKENS * LANES];
    const uint row = get_group_id(0) * TEAMS + TEAM, expert = get_group_id(1);
    const bool is_wanted = expert >= 64 || (wanted >> expert & 1) != 0;
    const uint first = max(starts[expert], base) + get_group_id(2) * TOKENS;
    const uint end = is_wanted ? min(starts[expert + 1], min(uses, base + results)) : 0;
    uint x_rows[TOKENS];
    for (uint t = 0; t < TOKENS; t++) {
        const uint use = min(first + t, max(end, 1u) - 1);
        x_rows[t] = (flags & SELECT) ? min(use_tokens[use], uses / 2 - 1) : use;
    }
    if (first < end) {
        add_columns(weights + matrices[expert], min(row, rows - 1), cols, x, x_rows, partial);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    store_rows(partial, x, rows, first - base, first < end ? end - base : 0, out, flags);
}
