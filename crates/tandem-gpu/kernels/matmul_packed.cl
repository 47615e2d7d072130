// Products of packed weights (tandem-memory's `packed.rs`) and activations in 8 bits (`quantize.cl`).
//
// A team of 16 lanes has one or two tiles of 16 rows; a lane has a row of each. For a block of 32 columns it loads 16 or
// 32 bytes of quants of each row, where the team's loads are one run of memory, and multiplies them with the
// activations of some tokens, which are the same for all lanes.
//
// Compiled for BITS (4 or 8), PLANES (1, or 2 where each token has a second row of what the
// first leaves out), TOKENS and TILES (how many of each a team takes). `blocks` are columns / 32; `scales_from` is where a matrix's scales
// begin, in bytes; `rows` are those that are computed, which come first in it. `flags` say what becomes of the product.

#define HAS_BIAS 1u // there is a bias to be added
#define ADD_TO 2u   // the result is added to what is in `out`
#define SELECT 4u   // uses of experts take the activations of their tokens, rather than their own

#if BITS == 4
#define BLOCK_WORDS 64
#else
#define BLOCK_WORDS 128
#endif
#define ROWS (TOKENS * PLANES)
#define SUMS (TILES * ROWS)
// Where there is little to do with a block, more of them are asked for ahead.
#if SUMS == 1
#define BLOCKS_AHEAD 4
#elif SUMS == 2
#define BLOCKS_AHEAD 2
#else
#define BLOCKS_AHEAD 1
#endif

// Quants of a lane's row for one block, as 8 times 4 signed bytes, in the order of columns.
inline uint8 load_quants(global const uint *p) {
#if BITS == 4
    const uint4 q = LOAD4(p);
    return (uint8)(q & 0x0f0f0f0fu, (q >> 4) & 0x0f0f0f0fu);
#else
    return LOAD8(p);
#endif
}

// The dot product of 32 quants and 32 activations.
inline int dot_block(uint8 q, uint8 x, int offset) {
#if BITS == 4
    int sum = offset;
#else
    int sum = 0;
#endif
    sum = dot4(q.s0, x.s0, sum);
    sum = dot4(q.s1, x.s1, sum);
    sum = dot4(q.s2, x.s2, sum);
    sum = dot4(q.s3, x.s3, sum);
    sum = dot4(q.s4, x.s4, sum);
    sum = dot4(q.s5, x.s5, sum);
    sum = dot4(q.s6, x.s6, sum);
    return dot4(q.s7, x.s7, sum);
}

// Adds the blocks `block`, `block + step` and so on of the tiles from `tile` on, of which there are `tiles` in all, to
// `sums`: for each tile one for each of the rows of activations. A tile beyond the last is read as that, and its sums
// mean nothing.
inline void add_blocks(global const uchar *weights, uint scales_from, uint tiles, uint blocks, uint tile, uint block,
                       uint step, global const uint8 *values, global const float *scales, global const int *offsets,
                       const uint *rows, float *sums) {
    global const uint *quants[TILES];
    global const half *weight_scales[TILES];
    for (uint t = 0; t < TILES; t++) {
        const ulong first = (ulong)min(tile + t, tiles - 1) * blocks;
        quants[t] = (global const uint *)weights + first * BLOCK_WORDS;
        weight_scales[t] = (global const half *)(weights + scales_from) + first * LANES;
    }
    __attribute__((opencl_unroll_hint(BLOCKS_AHEAD)))
    for (; block < blocks; block += step) {
        uint8 q[TILES];
        float scale[TILES];
        __attribute__((opencl_unroll_hint(TILES)))
        for (uint t = 0; t < TILES; t++) {
            q[t] = load_quants(quants[t] + block * BLOCK_WORDS);
            scale[t] = vload_half(block * LANES + LANE, weight_scales[t]);
        }
        __attribute__((opencl_unroll_hint(ROWS)))
        for (uint r = 0; r < ROWS; r++) {
            const uint at = rows[r] * blocks + block;
            const uint8 x = values[at];
            const float x_scale = scales[at];
            const int offset = offsets[at];
            __attribute__((opencl_unroll_hint(TILES)))
            for (uint t = 0; t < TILES; t++) {
                sums[t * ROWS + r] += convert_float(dot_block(q[t], x, offset)) * (scale[t] * x_scale);
            }
        }
    }
}

// The result of a token: the sum over its planes.
inline float of_token(const float *sums, uint token) {
#if PLANES == 2
    return sums[2 * token] + sums[2 * token + 1];
#else
    return sums[token];
#endif
}

inline void store(float sum, global const float *bias, uint row, global float *out, ulong at, uint flags) {
    if (flags & HAS_BIAS) {
        sum += bias[row];
    }
    out[at] = (flags & ADD_TO) ? out[at] + sum : sum;
}

// The sums of all teams for their tiles, written to rows `first` to `end` of `out`.
inline void store_tiles(const float *sums, local float *partial, global const float *bias, uint tile, uint rows,
                        uint first, uint end, global float *out, uint flags) {
    for (uint n = 0; n < TILES; n++) {
        for (uint t = 0; t < TOKENS; t++) {
            partial[(TEAM * TOKENS + t) * LANES + LANE] = of_token(sums + n * ROWS, t);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint i = get_local_id(0); i < TOKENS * LANES; i += GROUP) {
            const uint token = first + i / LANES, row = (tile + n) * LANES + i % LANES;
            float sum = 0.0f;
            for (uint team = 0; team < TEAMS; team++) {
                sum += partial[team * TOKENS * LANES + i];
            }
            if (token < end && row < rows) {
                store(sum, bias, row, out, (ulong)token * rows + row, flags);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}

// Where tiles and tokens alone are too few for a whole device: the 16 teams of a group share the columns of its tiles.
// Group ids: tiles, block of tokens.
KERNEL matvec(IN(weights), const uint scales_from, const uint rows, const uint blocks, IN(bias), IN(values), IN(scales),
              IN(offsets), const uint tokens, OUT(out), const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(float, bias);
    IN_PTR(uint8, values);
    IN_PTR(float, scales);
    IN_PTR(int, offsets);
    OUT_PTR(float, out);
    local float partial[TEAMS * TOKENS * LANES];
    const uint tile = get_group_id(0) * TILES, first = get_group_id(1) * TOKENS;
    uint x_rows[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        x_rows[r] = min(first + r / PLANES, tokens - 1) * PLANES + r % PLANES;
    }
    float sums[SUMS] = {0};
    add_blocks(weights, scales_from, (rows + LANES - 1) / LANES, blocks, tile, TEAM, TEAMS, values, scales, offsets,
               x_rows, sums);
    store_tiles(sums, partial, bias, tile, rows, first, tokens, out, flags);
}

// Many tokens: each team has TILES tiles and TOKENS tokens of its own. The teams of a group have four times the tiles
// and four blocks of tokens, so that what one loads is in the cache for others. Group ids: tiles, blocks of tokens.
KERNEL matmul(IN(weights), const uint scales_from, const uint rows, const uint blocks, IN(bias), IN(values), IN(scales),
              IN(offsets), const uint tokens, OUT(out), const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(float, bias);
    IN_PTR(uint8, values);
    IN_PTR(float, scales);
    IN_PTR(int, offsets);
    OUT_PTR(float, out);
    const uint tiles = (rows + LANES - 1) / LANES;
    const uint tile = (get_group_id(0) * 4 + TEAM % 4) * TILES, first = (get_group_id(1) * 4 + TEAM / 4) * TOKENS;
    if (tile >= tiles || first >= tokens) {
        return;
    }
    uint x_rows[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        x_rows[r] = min(first + r / PLANES, tokens - 1) * PLANES + r % PLANES;
    }
    float sums[SUMS] = {0};
    add_blocks(weights, scales_from, tiles, blocks, tile, 0, 1, values, scales, offsets, x_rows, sums);
    for (uint n = 0; n < TILES; n++) {
        const uint row = (tile + n) * LANES + LANE;
        for (uint t = 0; t < TOKENS; t++) {
            if (row < rows && first + t < tokens) {
                store(of_token(sums + n * ROWS, t), bias, row, out, (ulong)(first + t) * rows + row, flags);
            }
        }
    }
}

// Products of the uses of experts (`group_experts.cl`), each with its expert's matrix, which begins `matrices[expert]`
// bytes into `weights`; all have the same shape. Group ids: tiles, expert, every how-manieth block of the expert's uses.
// There are `uses` in all, two for each token: whatever `starts` and `use_tokens` hold, nothing is read or written
// beyond.
KERNEL experts(IN(weights), IN(matrices), const uint scales_from, const uint rows, const uint blocks, IN(starts),
               IN(use_tokens), const uint uses, IN(values), IN(scales), IN(offsets), OUT(out), const uint flags) {
    IN_PTR(uchar, weights);
    IN_PTR(ulong, matrices);
    IN_PTR(uint, starts);
    IN_PTR(uint, use_tokens);
    IN_PTR(uint8, values);
    IN_PTR(float, scales);
    IN_PTR(int, offsets);
    OUT_PTR(float, out);
    local float partial[TEAMS * TOKENS * LANES];
    const uint tile = get_group_id(0) * TILES, expert = get_group_id(1);
    const uint end = min(starts[expert + 1], uses);
    for (uint first = starts[expert] + get_group_id(2) * TOKENS; first < end; first += get_num_groups(2) * TOKENS) {
        uint x_rows[ROWS];
        for (uint r = 0; r < ROWS; r++) {
            const uint use = min(first + r / PLANES, end - 1);
            x_rows[r] = ((flags & SELECT) ? min(use_tokens[use], uses / 2 - 1) : use) * PLANES + r % PLANES;
        }
        float sums[SUMS] = {0};
        add_blocks(weights + matrices[expert], scales_from, (rows + LANES - 1) / LANES, blocks, tile, TEAM, TEAMS, values,
                   scales, offsets, x_rows, sums);
        store_tiles(sums, partial, scales, tile, rows, first, end, out, flags);
    }
}
