// What NVIDIA's GPUs have that OpenCL C has no word for there, as assembly: loads that stay where they are written, and
// products on tensor cores. Takes the place of `add_blocks` in `matmul_packed.cl`, compiled for the same numbers.
//
// The compiler moves a plain load to where its value is used, and no loop with assembly in it is unrolled. So a few blocks
// are asked for at once, in so many words.

// Rows of activations that a team has.
#define ROWS (TOKENS * PLANES)

#if TENSOR || (defined(PTX_DOT) && TILES * ROWS == 1)
#define ORDERED
#define UNROLL(n) __attribute__((opencl_unroll_hint(n)))

inline uint load1(global const uint *p) {
    uint x;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
}

inline uint2 load2(global const uint *p) {
    uint2 x;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
    return x;
}

inline uint4 load4(global const uint *p) {
    uint4 x;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}

// Two halves that lie side by side, as loaded.
inline float2 two_halves(uint x) {
    float2 y;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(y.x), "=f"(y.y) : "r"(x));
    return y;
}

// A block's words of activations. Its scale and offset are words 8 and 9.
#define X_WORDS (BLOCK_BYTES / 4)
#endif

#if TENSOR

// A team is a warp. One instruction multiplies a tile's block with 8 rows of activations. Of what it takes, work-item
// `4 r + g` has columns `4 g` to `4 g + 3` and `16 + 4 g` to `16 + 4 g + 3` of two rows of the tile, which is how tiles are
// packed, and the same columns of the `r`th row of activations; of what it gives, its two rows' products with
// activations `2 g` and `2 g + 1`. Its two rows are neighbours, which one load brings.
#define WARP 32
#define SHARERS (GROUP / WARP)
#define SHARER ((uint)get_local_id(0) / WARP)
#define PAIR ((uint)get_local_id(0) % WARP / 4)
#define PART ((uint)get_local_id(0) % 4)

// Rows of activations by 8. Of each 8 a work-item takes the values of one, and the scales of two.
#define EIGHTS (ROWS / 8)
#define HELD_ROWS (3 * EIGHTS)
#define HELD_ROW(i) ((i) / 3 * 8 + ((i) % 3 == 0 ? PAIR : 2 * PART + (i) % 3 - 1))
#define SUMS (TILES * EIGHTS * 4)
#if FEW
// Of few tokens a result must not depend on how many there are. One alone is added up by TEAMS teams, so a warp, of which
// there are fewer, adds up what several of those do, apart.
#define COPIES (TEAMS / SHARERS)
// As many as are fastest on an H200: twice as many make 4 bits half as fast, and 8 bits a quarter faster.
#define BLOCKS_AHEAD (BITS == 4 ? COPIES : 2 * COPIES)
#else
#define COPIES 1
// Blocks that are asked for at once: there are only so many registers.
#define BLOCKS_AHEAD (SUMS <= 4 ? 4 : SUMS <= 8 ? 2 : 1)
#endif

// A whole number below 2^22, added to this as bits, makes a float of as much more than this is as a float: converting it
// so costs a subtraction, where the instruction for it has a quarter of the rate. Where a sum would otherwise begin at 0
// it costs more than it saves (8 bits).
#define FLOAT_BITS 0x4b400000
#if BITS == 4
#define TO_FLOATS(x) (as_float4(x) - as_float(FLOAT_BITS))
#else
#define TO_FLOATS(x) convert_float4(x)
#endif

inline int4 multiply(uint4 a, uint2 b, int4 c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c.x), "+r"(c.y), "+r"(c.z), "+r"(c.w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
    return c;
}

// As in `matmul_packed.cl`, for the rows of activations that `HELD_ROW` names. For each tile and each 8 of those `sums` has
// four: of the first row with two rows of activations, and of the second.
inline void add_blocks(global const uchar *weights, uint scales_from, uint tiles, uint blocks, uint tile, uint block,
                       uint step, global const uint4 *x, const uint *rows, float *sums) {
    global const uint *quants[TILES], *scales[TILES], *of_row[HELD_ROWS];
    UNROLL(TILES)
    for (uint t = 0; t < TILES; t++) {
        const ulong first = (ulong)min(tile + t, tiles - 1) * blocks;
        quants[t] = (global const uint *)weights + first * TILE_BLOCK_WORDS + PART * LANES + 2 * PAIR;
        scales[t] = (global const uint *)(weights + scales_from) + first * (LANES / 2) + PAIR;
    }
    UNROLL(HELD_ROWS)
    for (uint i = 0; i < HELD_ROWS; i++) {
        of_row[i] = (global const uint *)x + (ulong)rows[i] * blocks * X_WORDS;
    }
    for (; block < blocks; block += BLOCKS_AHEAD * step) {
        uint2 q[BLOCKS_AHEAD][TILES][BITS / 4];
        uint halves[BLOCKS_AHEAD][TILES];
        uint2 values[BLOCKS_AHEAD][EIGHTS], rest[BLOCKS_AHEAD][EIGHTS][2];
        UNROLL(BLOCKS_AHEAD)
        for (uint k = 0; k < BLOCKS_AHEAD; k++) {
            // One beyond the last is read as the last, and counts as nothing.
            const uint at = BLOCKS_AHEAD == 1 ? block : min(block + k * step, blocks - 1);
            UNROLL(TILES)
            for (uint t = 0; t < TILES; t++) {
                q[k][t][0] = load2(quants[t] + at * TILE_BLOCK_WORDS);
#if BITS == 8
                q[k][t][1] = load2(quants[t] + at * TILE_BLOCK_WORDS + 4 * LANES);
#endif
                halves[k][t] = load1(scales[t] + at * (LANES / 2));
            }
            UNROLL(EIGHTS)
            for (uint e = 0; e < EIGHTS; e++) {
                global const uint *of = of_row[3 * e] + at * X_WORDS + PART;
                values[k][e] = (uint2)(load1(of), load1(of + 4));
                rest[k][e][0] = load2(of_row[3 * e + 1] + at * X_WORDS + 8);
                rest[k][e][1] = load2(of_row[3 * e + 2] + at * X_WORDS + 8);
            }
        }
        UNROLL(BLOCKS_AHEAD)
        for (uint k = 0; k < BLOCKS_AHEAD; k++) {
            // All products first: none waits for another's result.
            int4 dots[TILES][EIGHTS];
            UNROLL(TILES)
            for (uint t = 0; t < TILES; t++) {
#if BITS == 4
                const uint4 w = (uint4)(q[k][t][0], q[k][t][0] >> 4) & 0x0f0f0f0fu;
#else
                const uint4 w = (uint4)(q[k][t][0], q[k][t][1]);
#endif
                UNROLL(EIGHTS)
                for (uint e = 0; e < EIGHTS; e++) {
#if BITS == 4
                    const int2 offset = as_int2((uint2)(rest[k][e][0].y, rest[k][e][1].y)) + FLOAT_BITS;
#else
                    const int2 offset = (int2)(0);
#endif
                    dots[t][e] = multiply(w, values[k][e], (int4)(offset, offset));
                }
            }
            const bool beyond = BLOCKS_AHEAD > 1 && block + k * step >= blocks;
            UNROLL(TILES)
            for (uint t = 0; t < TILES; t++) {
                const float2 scale = beyond ? (float2)(0.0f) : two_halves(halves[k][t]);
                UNROLL(EIGHTS)
                for (uint e = 0; e < EIGHTS; e++) {
                    const float scale0 = as_float(rest[k][e][0].x), scale1 = as_float(rest[k][e][1].x);
                    const float4 d = TO_FLOATS(dots[t][e]);
                    float *s = sums + ((COPIES > 1 ? k % COPIES * TILES : 0) + t) * EIGHTS * 4 + e * 4;
                    s[0] += d.x * (scale.x * scale0);
                    s[1] += d.y * (scale.x * scale1);
                    s[2] += d.z * (scale.y * scale0);
                    s[3] += d.w * (scale.y * scale1);
                }
            }
        }
    }
}

// Puts a work-item's results of a tile where those of its team go, by token and row.
inline void put_tile(const float *sums, local float *results) {
    UNROLL(EIGHTS)
    for (uint e = 0; e < EIGHTS; e++) {
        UNROLL(2)
        for (uint r = 0; r < 2; r++) {
            const float *two = sums + e * 4 + r * 2;
            local float *row = results + 2 * PAIR + r;
#if PLANES == 2
            row[(e * 4 + PART) * LANES] = two[0] + two[1];
#else
            row[(e * 8 + 2 * PART) * LANES] = two[0];
            row[(e * 8 + 2 * PART + 1) * LANES] = two[1];
#endif
        }
    }
}

#elif defined(ORDERED)

// As in `matmul_packed.cl`, for one tile and one row of activations.
inline void add_blocks(global const uchar *weights, uint scales_from, uint tiles, uint blocks, uint tile, uint block,
                       uint step, global const uint4 *x, const uint *rows, float *sums) {
    const ulong first = (ulong)min(tile, tiles - 1) * blocks;
    global const uint *quants = (global const uint *)weights + first * TILE_BLOCK_WORDS + LANE;
    // Two lanes load the same word, and take a half of it each.
    global const uint *scales = (global const uint *)(weights + scales_from) + first * (LANES / 2) + LANE / 2;
    global const uint *of_row = (global const uint *)x + (ulong)rows[0] * blocks * X_WORDS;
    for (; block < blocks; block += step) {
        uint q[BITS];
        UNROLL(BITS)
        for (uint w = 0; w < BITS; w++) {
            q[w] = load1(quants + block * TILE_BLOCK_WORDS + w * LANES);
        }
        const uint halves = load1(scales + block * (LANES / 2));
        const uint8 values = (uint8)(load4(of_row + block * X_WORDS), load4(of_row + block * X_WORDS + 4));
        const uint2 rest = load2(of_row + block * X_WORDS + 8);
#if BITS == 4
        const uint low = 0x0f0f0f0fu;
        const uint4 w = (uint4)(q[0], q[1], q[2], q[3]), a = w & low, b = (w >> 4) & low;
        const Quants of_block = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#else
        const Quants of_block = {q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]};
#endif
        const float2 both = two_halves(halves);
        const float scale = LANE % 2 == 0 ? both.x : both.y;
        sums[0] += convert_float(dot_block(of_block, values, as_int(rest.y))) * (scale * as_float(rest.x));
    }
}

#endif
