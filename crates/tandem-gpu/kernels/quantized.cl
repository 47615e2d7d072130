// Activations in 8 bits, as tandem-memory's `quantized.rs` has them: blocks of 32 numbers, each with a scale that makes
// its largest magnitude 127. A block is 48 bytes: values, scale, offset, the offset in two parts, and 4 of nothing.

// Work-items that quantize a block, 4 numbers each.
#define BLOCK_ITEMS 8
// What must not be divided by: activations of a block that are all smaller count as 0.
#define TINY 1e-36f

// The sum of 8 neighbours' numbers, by way of local memory.
inline int block_sum(int x, local uint *scratch) {
    const uint i = get_local_id(0);
    scratch[i] = as_uint(x);
    barrier(CLK_LOCAL_MEM_FENCE);
    int sum = 0;
    for (uint k = 0; k < BLOCK_ITEMS; k++) {
        sum += as_int(scratch[(i & ~7u) + k]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return sum;
}

// Quantizes the numbers `4 * index` and so on, which are this work-item's, while its neighbours do the rest of the block;
// answers what the 8 bits stand for. `scratch` has room for GROUP numbers. All of a group must come by, for the barriers:
// who has no numbers says so.
inline float4 quantize_block(float4 x, bool has_numbers, global uchar *blocks, uint index, local uint *scratch) {
    const float largest = as_float(block_max(magnitude(x), scratch));
    const bool finite = isfinite(largest);
    const bool any = finite && largest >= TINY;
    const float scale = finite ? (any ? largest / 127.0f : 0.0f) : NAN;
    const float inverse = any ? 127.0f / largest : 0.0f;
    const int4 whole = any ? convert_int4_rte(x * inverse) : (int4)(0);
    // Two sums in one: of the first two of 4 and of the last two. Both fit 16 bits.
    const int both = block_sum((whole.x + whole.y) + (whole.z + whole.w) * 65536, scratch);
    if (has_numbers) {
        global uchar *block = blocks + (ulong)(index / BLOCK_ITEMS) * BLOCK_BYTES;
        ((global char4 *)block)[index % BLOCK_ITEMS] = convert_char4(whole);
        if (index % BLOCK_ITEMS == 0) {
            const int first = as_short2(both).x, last = (both - first) / 65536;
            const short2 halves = convert_short2((int2)(first, last) * -8);
            ((global uint4 *)block)[2] = (uint4)(as_uint(scale), as_uint(-8 * (first + last)), as_uint(halves), 0);
        }
    }
    return convert_float4(whole) * scale;
}
