// Products of packed weights and activations in 8 bits (`dots.cl`).
//
// A team takes one or two tiles of 16 rows and some tokens at a time, whose activations are the same for all lanes.
//
// Compiled for BITS (4 or 8), PLANES (1, or 2 where there is a second plane of what the first leaves out), TOKENS and
// TILES (how many of each a team takes), PRODUCTS (matrices with the same input, 1 to 3), TENSOR (1 for NVIDIA's tensor
// cores), FEW (1 where those add up in the order of a single token). `blocks` are columns / 32; `scales_from` is where a matrix's scales begin, in bytes; `rows` are those that are
// computed, which come first in it. `flags` say what becomes of the product.

#define HAS_BIAS 1u // there is a bias to be added
#define ADD_TO 2u   // the result is added to what is in `out`
#define SELECT 4u   // uses of experts take the activations of their tokens, rather than their own

// What a team is, and what it does with a block, is another thing where there are tensor cores (`ptx.cl`).
#if !TENSOR
#define HELD_ROWS ROWS
#define HELD_ROW(i) (i)
#define SUMS (TILES * ROWS)
#define COPIES 1
#define SHARERS MATMUL_TEAMS
#define SHARER MATMUL_TEAM
#endif

#ifndef ORDERED
// Where there is little to do with a block, more of them are asked for ahead.
#ifdef VECTORS
#define BLOCKS_AHEAD 1
#elif SUMS == 1
#define BLOCKS_AHEAD 4
#elif SUMS == 2
#define BLOCKS_AHEAD 2
#else
#define BLOCKS_AHEAD 1
#endif

// Adds the blocks `block`, `block + step` and so on of the tiles from `tile` on, of which there are `tiles` in all, to
// `sums`: for each tile one for each of the rows of activations that are named. A tile beyond the last is read as that,
// and its sums mean nothing.
inline void add_blocks(global const uchar *weights, uint scales_from, uint tiles, uint blocks, uint tile, uint block,
                       uint step, global const uint4 *x, const uint *rows, Reals *sums) {
    global const uint *quants[TILES];
    global const half *weight_scales[TILES];
    for (uint t = 0; t < TILES; t++) {
        const ulong first = (ulong)min(tile + t, tiles - 1) * blocks;
        quants[t] = (global const uint *)weights + first * TILE_BLOCK_WORDS;
        weight_scales[t] = (global const half *)(weights + scales_from) + first * LANES;
    }
    __attribute__((opencl_unroll_hint(BLOCKS_AHEAD)))
    for (; block < blocks; block += step) {
        Quants q[TILES];
        Reals scale[TILES];
        __attribute__((opencl_unroll_hint(TILES)))
        for (uint t = 0; t < TILES; t++) {
            q[t] = load_quants(quants[t] + block * TILE_BLOCK_WORDS);
            scale[t] = LOAD_SCALES(weight_scales[t], block);
        }
        __attribute__((opencl_unroll_hint(ROWS)))
        for (uint r = 0; r < ROWS; r++) {
            global const uint4 *of_row = x + (ulong)(rows[r] * blocks + block) * (BLOCK_BYTES / 16);
            const uint8 values = (uint8)(of_row[0], of_row[1]);
            const uint2 rest = of_row[2].xy;
            const float x_scale = as_float(rest.x);
            const int offset = as_int(rest.y);
            __attribute__((opencl_unroll_hint(TILES)))
            for (uint t = 0; t < TILES; t++) {
                sums[t * ROWS + r] += TO_REALS(dot_block(q[t], values, offset)) * (scale[t] * x_scale);
            }
        }
    }
}

#endif

#if !TENSOR
// The result of a token: the sum over its planes.
inline Reals of_token(const Reals *sums, uint token) {
#if PLANES == 2
    return sums[2 * token] + sums[2 * token + 1];
#else
    return sums[token];
#endif
}

#endif

inline void store(float sum, global const float *bias, uint row, global float *out, ulong at, uint flags) {
    if (flags & HAS_BIAS) {
        sum += bias[row];
    }
    out[at] = (flags & ADD_TO) ? out[at] + sum : sum;
}

// A work-item's result of a token, for its rows from `row` on.
inline void store_rows(Reals sum, global const float *bias, uint row, uint rows, global float *out, ulong at, uint flags) {
#ifdef VECTORS
    float each[ITEM_ROWS];
    vstore8(sum, 0, each);
    for (uint r = 0; r < ITEM_ROWS && row + r < rows; r++) {
        store(each[r], bias, row + r, out, at + row + r, flags);
    }
#else
    if (row < rows) {
        store(sum, bias, row, out, at + row, flags);
    }
#endif
}

#if MATMUL_TEAMS > 1
#define PARTIAL local float partial[COPIES * SHARERS * TOKENS * LANES];
#else
#define PARTIAL local float partial[1];
#endif

// The sums of all teams for their tiles, written to rows `first` to `end` of `out`.
inline void store_tiles(const Reals *sums, local float *partial, global const float *bias, uint tile, uint rows,
                        uint first, uint end, global float *out, uint flags) {
#if MATMUL_TEAMS == 1
    for (uint n = 0; n < TILES; n++) {
        for (uint t = 0; t < TOKENS && first + t < end; t++) {
            const uint row = (tile + n) * LANES + ITEM * ITEM_ROWS;
            store_rows(of_token(sums + n * ROWS, t), bias, row, rows, out, (ulong)(first + t) * rows, flags);
        }
    }
#else
    for (uint n = 0; n < TILES; n++) {
#if TENSOR
        for (uint c = 0; c < COPIES; c++) {
            put_tile(sums + c * SUMS + n * (SUMS / TILES), partial + (c * SHARERS + SHARER) * TOKENS * LANES);
        }
#else
        for (uint t = 0; t < TOKENS; t++) {
            partial[(TEAM * TOKENS + t) * LANES + LANE] = of_token(sums + n * ROWS, t);
        }
#endif
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint i = get_local_id(0); i < TOKENS * LANES; i += GROUP) {
            const uint token = first + i / LANES, row = (tile + n) * LANES + i % LANES;
            float sum = 0.0f;
            for (uint team = 0; team < COPIES * SHARERS; team++) {
                sum += partial[team * TOKENS * LANES + i];
            }
            if (token < end && row < rows) {
                store(sum, bias, row, out, (ulong)token * rows + row, flags);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
#endif
}

// A matrix, and what belongs to it.
#define PRODUCT(n) IN(weights##n), const uint scales_from##n, const uint rows##n, IN(bias##n), OUT(out##n)
#define GROUPS_OF(n) ((rows##n + LANES * TILES - 1) / (LANES * TILES))
#define TAKE(n)                                                                                                        \
    weights = weights##n##_base + weights##n##_at;                                                                     \
    scales_from = scales_from##n;                                                                                      \
    rows = rows##n;                                                                                                    \
    bias = (global const float *)(bias##n##_base + bias##n##_at);                                                      \
    out = (global float *)(out##n##_base + out##n##_at);
#if PRODUCTS == 1
#define MATRICES PRODUCT(0)
#elif PRODUCTS == 2
#define MATRICES PRODUCT(0), PRODUCT(1)
#else
#define MATRICES PRODUCT(0), PRODUCT(1), PRODUCT(2)
#endif

// Where tiles and tokens alone are too few for a whole device: the teams of a group share the columns of its tiles.
// Group ids: tiles of all matrices, every how-manieth block of tokens.
MATMUL_KERNEL matvec(MATRICES, const uint blocks, IN(x), const uint tokens, const uint flags) {
    IN_PTR(uint4, x);
    PARTIAL
    uint group = get_group_id(0), scales_from, rows;
    global const uchar *weights;
    global const float *bias;
    global float *out;
    TAKE(0)
#if PRODUCTS > 1
    if (group >= GROUPS_OF(0)) {
        group -= GROUPS_OF(0);
        TAKE(1)
#if PRODUCTS > 2
        if (group >= GROUPS_OF(1)) {
            group -= GROUPS_OF(1);
            TAKE(2)
        }
#endif
    }
#endif
    const uint tile = group * TILES;
    for (uint first = get_group_id(1) * TOKENS; first < tokens; first += get_num_groups(1) * TOKENS) {
        uint x_rows[HELD_ROWS];
        for (uint i = 0; i < HELD_ROWS; i++) {
            const uint r = HELD_ROW(i);
            x_rows[i] = min(first + r / PLANES, tokens - 1) + r % PLANES * tokens;
        }
        Reals sums[COPIES * SUMS];
        for (uint s = 0; s < COPIES * SUMS; s++) {
            sums[s] = (Reals)(0.0f);
        }
        add_blocks(weights, scales_from, (rows + LANES - 1) / LANES, blocks, tile, SHARER, SHARERS, x, x_rows, sums);
        store_tiles(sums, partial, bias, tile, rows, first, tokens, out, flags);
    }
}

#if PRODUCTS == 1 && MATMUL_TEAMS > 1 && !TENSOR
// Many tokens: each team has TILES tiles and TOKENS tokens of its own. The teams of a group have four times the tiles
// and four blocks of tokens, so that what one loads is in the cache for others. Group ids: tiles, blocks of tokens.
MATMUL_KERNEL matmul(PRODUCT(0), const uint blocks, IN(x), const uint tokens, const uint flags) {
    IN_PTR(uint4, x);
    uint scales_from, rows;
    global const uchar *weights;
    global const float *bias;
    global float *out;
    TAKE(0)
    const uint tiles = (rows + LANES - 1) / LANES;
    const uint tile = (get_group_id(0) * 4 + TEAM % 4) * TILES, first = (get_group_id(1) * 4 + TEAM / 4) * TOKENS;
    if (tile >= tiles || first >= tokens) {
        return;
    }
    uint x_rows[HELD_ROWS];
    for (uint i = 0; i < HELD_ROWS; i++) {
        const uint r = HELD_ROW(i);
        x_rows[i] = min(first + r / PLANES, tokens - 1) + r % PLANES * tokens;
    }
    Reals sums[COPIES * SUMS];
    for (uint s = 0; s < COPIES * SUMS; s++) {
        sums[s] = (Reals)(0.0f);
    }
    add_blocks(weights, scales_from, tiles, blocks, tile, 0, 1, x, x_rows, sums);
    for (uint n = 0; n < TILES; n++) {
        for (uint t = 0; t < TOKENS && first + t < tokens; t++) {
            const uint row = (tile + n) * LANES + LANE;
            store_rows(of_token(sums + n * ROWS, t), bias, row, rows, out, (ulong)(first + t) * rows, flags);
        }
    }
}
#endif

#if PRODUCTS < 3
#if PRODUCTS == 1
#define EXPERT_MATRICES IN(matrices0), OUT(out0)
#else
#define EXPERT_MATRICES IN(matrices0), OUT(out0), IN(matrices1), OUT(out1)
#endif

// Products of the uses of experts (`group_experts.cl`), each with its expert's matrices, which begin `matrices[expert]`
// bytes into `weights`; all have the same shape. Of the first 64 experts only those are computed whose bit is set in
// `wanted`; `out` has the results of so many uses from `base` on. Group ids: tiles of all matrices, expert, every how-manieth block of the expert's uses. There are `uses` in
// all, two for each token: whatever `starts` and `use_tokens` hold, nothing is read or written beyond.
MATMUL_KERNEL experts(IN(weights), EXPERT_MATRICES, const uint scales_from, const uint rows, const uint blocks,
                      IN(starts), IN(use_tokens), const uint uses, const ulong wanted, const uint base, const uint results, IN(x),
                      const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(uint, starts);
    IN_PTR(uint, use_tokens);
    IN_PTR(uint4, x);
    PARTIAL
    uint group = get_group_id(0);
    global const ulong *matrices = (global const ulong *)(matrices0_base + matrices0_at);
    global float *out = (global float *)(out0_base + out0_at);
#if PRODUCTS == 2
    const uint groups = (rows + LANES * TILES - 1) / (LANES * TILES);
    if (group >= groups) {
        group -= groups;
        matrices = (global const ulong *)(matrices1_base + matrices1_at);
        out = (global float *)(out1_base + out1_at);
    }
#endif
    const uint tile = group * TILES, expert = get_group_id(1);
    const bool is_wanted = expert >= 64 || (wanted >> expert & 1) != 0;
    const uint end = is_wanted ? min(starts[expert + 1], min(uses, base + results)) : 0;
    const uint inputs = (flags & SELECT) ? uses / 2 : uses;
    uint first = max(starts[expert], base) + get_group_id(2) * TOKENS;
    for (; first < end; first += get_num_groups(2) * TOKENS) {
        uint x_rows[HELD_ROWS];
        for (uint i = 0; i < HELD_ROWS; i++) {
            const uint r = HELD_ROW(i);
            const uint use = min(first + r / PLANES, end - 1);
            x_rows[i] = ((flags & SELECT) ? min(use_tokens[use], inputs - 1) : use) + r % PLANES * inputs;
        }
        Reals sums[COPIES * SUMS];
        for (uint s = 0; s < COPIES * SUMS; s++) {
            sums[s] = (Reals)(0.0f);
        }
        add_blocks(weights + matrices[expert], scales_from, (rows + LANES - 1) / LANES, blocks, tile, SHARER,
                   SHARERS, x, x_rows, sums);
        store_tiles(sums, partial, (global const float *)x, tile, rows, first - base, end - base, out, flags);
    }
}
#endif
