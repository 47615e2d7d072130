// What every kernel begins with: how memory is passed, and what differs from path to path.

// Memory is passed as a base and an offset in bytes: a driver may know one allocation as one buffer, and tensors lie
// anywhere within it.
#define IN(name) global const uchar *restrict name##_base, const ulong name##_at
#define OUT(name) global uchar *name##_base, const ulong name##_at
#define IN_PTR(type, name) global const type *name = (global const type *)(name##_base + name##_at)
#define OUT_PTR(type, name) global type *name = (global type *)(name##_base + name##_at)

// A tile has 16 rows, and a lane is a row. Work-groups are of 256 work-items: 16 teams of 16 lanes. On paths with
// subgroups a team is one.
#define LANES 16
#define TEAMS 16
#define GROUP 256

#ifdef SUBGROUPS
#define TEAM_SIZE __attribute__((intel_reqd_sub_group_size(LANES)))
#else
#define TEAM_SIZE
#endif
#define KERNEL __attribute__((reqd_work_group_size(GROUP, 1, 1))) TEAM_SIZE kernel void

// Activations in 8 bits come in blocks of 32, see `quantized.cl`.
#define BLOCK_BYTES 48

// With a work-group of one dimension, the lanes of a subgroup are neighbours in it.
#define LANE ((uint)get_local_id(0) % LANES)
#define TEAM ((uint)get_local_id(0) / LANES)

// The sum, or the largest, of a number of each work-item of a group, to all of them. `scratch` has room for GROUP
// numbers, and may be used again at once.
#ifdef SUBGROUPS
#define GROUP_REDUCE(name, combine, reduce)                                                                            \
    inline float name(float x, local float *scratch) {                                                                 \
        x = reduce(x);                                                                                                 \
        if (LANE == 0) {                                                                                               \
            scratch[TEAM] = x;                                                                                         \
        }                                                                                                              \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                  \
        x = reduce(scratch[LANE]);                                                                                     \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                  \
        return x;                                                                                                      \
    }
#else
#define GROUP_REDUCE(name, combine, reduce)                                                                            \
    inline float name(float x, local float *scratch) {                                                                 \
        const uint i = get_local_id(0);                                                                                \
        scratch[i] = x;                                                                                                \
        for (uint rest = GROUP / 2; rest > 0; rest /= 2) {                                                             \
            barrier(CLK_LOCAL_MEM_FENCE);                                                                              \
            if (i < rest) {                                                                                            \
                scratch[i] = combine(scratch[i], scratch[i + rest]);                                                   \
            }                                                                                                          \
        }                                                                                                              \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                  \
        x = scratch[0];                                                                                                \
        barrier(CLK_LOCAL_MEM_FENCE);                                                                                  \
        return x;                                                                                                      \
    }
#endif
#define ADD(a, b) ((a) + (b))
GROUP_REDUCE(group_sum, ADD, sub_group_reduce_add)
GROUP_REDUCE(group_max, fmax, sub_group_reduce_max)

// The largest of magnitudes, as bits: what is not a number is larger than all numbers.
inline uint magnitude(float4 x) {
    const uint4 bits = as_uint4(x) & 0x7fffffffu;
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// The largest of 8 neighbours' numbers, by way of local memory.
inline uint block_max(uint x, local uint *scratch) {
    const uint i = get_local_id(0);
    scratch[i] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint k = 0; k < 8; k++) {
        x = max(x, scratch[(i & ~7u) + k]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return x;
}
