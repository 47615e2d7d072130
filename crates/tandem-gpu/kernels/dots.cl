// A block of 32 columns of a packed tile (tandem-memory's `packed.rs`), times a block of activations (`quantized.cl`).
//
// On GPUs a work-item has a row of the tile: 16 of them are a team, whose loads are one run of memory, and the 16 teams of
// a work-group may share the columns. With VECTORS, for CPUs, a work-item has 8 rows, in a vector.
//
// Compiled for BITS (4 or 8).

#ifdef VECTORS
#define ITEM_ROWS 8
#define MATMUL_TEAMS 1
typedef uint8 Words;
typedef int8 Wholes;
typedef float8 Reals;
#define TO_REALS convert_float8
#else
#define ITEM_ROWS 1
#define MATMUL_TEAMS TEAMS
typedef uint Words;
typedef int Wholes;
typedef float Reals;
#define TO_REALS convert_float
#endif
// Work-items of a team, and of a work-group.
#define TEAM_ITEMS (LANES / ITEM_ROWS)
#define MATMUL_GROUP (MATMUL_TEAMS * TEAM_ITEMS)
#define MATMUL_KERNEL __attribute__((reqd_work_group_size(MATMUL_GROUP, 1, 1))) TEAM_SIZE kernel void
#define ITEM ((uint)get_local_id(0) % TEAM_ITEMS)
#define MATMUL_TEAM ((uint)get_local_id(0) / TEAM_ITEMS)

#if BITS == 4
#define TILE_BLOCK_WORDS 64
#else
#define TILE_BLOCK_WORDS 128
#endif
// 32 weights of a row are 8 words.
#define BLOCK_WORDS 8

#ifdef VECTORS
#define LOAD_WORDS(p, group) vload8(0, (p) + (group) * LANES + ITEM * ITEM_ROWS)
#define LOAD_SCALES(p, at) vload_half8(0, (p) + (at) * LANES + ITEM * ITEM_ROWS)
#else
#define LOAD_SCALES(p, at) vload_half((at) * LANES + LANE, p)
// A lane's 32 bits of 64 bytes in a row, for four or eight such rows one after the other.
#ifdef BLOCK_READS
#define LOAD4(p) intel_sub_group_block_read4(p)
#define LOAD8(p) intel_sub_group_block_read8(p)
#else
#define LOAD4(p) ((uint4)((p)[LANE], (p)[16 + LANE], (p)[32 + LANE], (p)[48 + LANE]))
#define LOAD8(p) ((uint8)(LOAD4(p), LOAD4((p) + 64)))
#endif
#endif

// Quants of a row for one block, as 8 times 4 bytes in the order of columns: signed ones, or 0 to 15.
typedef struct {
    Words w0, w1, w2, w3, w4, w5, w6, w7;
} Quants;

inline Quants load_quants(global const uint *p) {
#if BITS == 4
#ifdef VECTORS
    const Words a = LOAD_WORDS(p, 0), b = LOAD_WORDS(p, 1), c = LOAD_WORDS(p, 2), d = LOAD_WORDS(p, 3);
#else
    const uint4 q = LOAD4(p);
    const Words a = q.x, b = q.y, c = q.z, d = q.w;
#endif
    const uint low = 0x0f0f0f0fu;
    return (Quants){a & low,        b & low,        c & low,        d & low,
                    (a >> 4) & low, (b >> 4) & low, (c >> 4) & low, (d >> 4) & low};
#elif defined(VECTORS)
    return (Quants){LOAD_WORDS(p, 0), LOAD_WORDS(p, 1), LOAD_WORDS(p, 2), LOAD_WORDS(p, 3),
                    LOAD_WORDS(p, 4), LOAD_WORDS(p, 5), LOAD_WORDS(p, 6), LOAD_WORDS(p, 7)};
#else
    const uint8 q = LOAD8(p);
    return (Quants){q.s0, q.s1, q.s2, q.s3, q.s4, q.s5, q.s6, q.s7};
#endif
}

#ifdef VECTORS

// Each word is two 16-bit numbers of two bytes: products of the lower bytes, and of the upper ones, are 16 bits again.
#define PAIRS(words) as_short16((Words)(words))
#define WIDE(x) (((x) << 16) >> 16) + ((x) >> 16)

#if BITS == 4
// 16 products of 0 to 15 and -127 to 127 are less than 2^15 together.
#define ADD(k)                                                                                                         \
    sum += PAIRS(q.w##k & 0x00ff00ffu) * PAIRS(even.s##k) + PAIRS((q.w##k >> 8) & 0x00ff00ffu) * PAIRS(odd.s##k);
#else
// Two products of -128 to 127 and -127 to 127 are.
#define ADD(k)                                                                                                         \
    {                                                                                                                  \
        const short16 w = PAIRS(q.w##k);                                                                               \
        const int8 two = as_int8(((w << (short)8) >> (short)8) * PAIRS(even.s##k) + (w >> (short)8) * PAIRS(odd.s##k)); \
        total += WIDE(two);                                                                                            \
    }
#endif

// The dot products of 32 quants of each row and 32 activations.
inline Wholes dot_block(Quants q, uint8 x, int offset) {
    const uint8 even = as_uint8((as_short16(x) << (short)8) >> (short)8), odd = as_uint8(as_short16(x) >> (short)8);
#if BITS == 4
    short16 sum = (short16)(0);
#else
    int8 total = (int8)(0);
#endif
    ADD(0) ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7)
#if BITS == 4
    const int8 two = as_int8(sum);
    return (WIDE(two)) + offset;
#else
    return total;
#endif
}
#undef ADD

#else

// Four products of signed 8-bit integers, added up.
inline int dot4(uint a, uint b, int sum) {
#ifdef DOT
    return sum + dot_4x8packed_ss_int(a, b);
#elif defined(PTX_DOT)
    // NVIDIA's OpenCL C has no function for its instruction.
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
#else
    const int4 p = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
    return sum + (p.x + p.y) + (p.z + p.w);
#endif
}

// The dot product of 32 quants and 32 activations.
inline int dot_block(Quants q, uint8 x, int offset) {
#if BITS == 4
    int sum = offset;
#else
    int sum = 0;
#endif
    sum = dot4(q.w0, x.s0, sum);
    sum = dot4(q.w1, x.s1, sum);
    sum = dot4(q.w2, x.s2, sum);
    sum = dot4(q.w3, x.s3, sum);
    sum = dot4(q.w4, x.s4, sum);
    sum = dot4(q.w5, x.s5, sum);
    sum = dot4(q.w6, x.s6, sum);
    return dot4(q.w7, x.s7, sum);
}

#endif
